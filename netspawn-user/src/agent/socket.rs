//! The agent's socket: each connection speaks at its own pace, apart from the
//! loop, which only ever sees whole requests.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{
    control::{MAX_LINE, Request, Response},
    event::{Event, Filter, Kind},
};

/// How long a client may take to speak, and to hear the last of it when the agent
/// ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests that wait for the loop.
const WAITING: usize = 16;

/// A request, and where its answer goes.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What a client gets.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// What it follows from then on.
    pub(super) events: Option<(broadcast::Receiver<Arc<Event>>, Filter)>,
}

impl Answer {
    /// Nothing is done, for that reason.
    pub(super) fn refusal(error: String) -> Self {
        Answer {
            response: Response {
                error: Some(error),
                ..Response::default()
            },
            events: None,
        }
    }
}

/// Everybody who is connected.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    conversations: JoinSet<()>,
    sender: mpsc::Sender<Asked>,
    requests: mpsc::Receiver<Asked>,
}

impl Socket {
    /// Makes the socket, which root alone may use. The caller holds the lock, so
    /// that one that is there is a dead agent's.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn open(path: &Path) -> Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(path, mode)
            .with_context(|| format!("cannot protect {}", path.display()))?;
        let (sender, requests) = mpsc::channel(WAITING);
        Ok(Socket {
            listener,
            conversations: JoinSet::new(),
            sender,
            requests,
        })
    }

    /// Waits for a request. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Asked {
        loop {
            tokio::select! {
                connection = self.listener.accept() => match connection {
                    Ok((stream, _)) => {
                        self.conversations.spawn(converse(stream, self.sender.clone()));
                    }
                    Err(error) => {
                        tracing::warn!("cannot take a connection: {error}");
                        tokio::time::sleep(PATIENCE).await;
                    }
                },
                Some(asked) = self.requests.recv() => return asked,
                Some(_) = self.conversations.join_next() => {}
            }
        }
    }

    /// Lets everybody hear what has been said to them, within reason.
    #[expect(clippy::disallowed_methods, reason = "who has left needs no answer")]
    pub(super) async fn close(mut self) {
        // Who is about to ask will find that nobody answers.
        self.requests.close();
        while self.requests.try_recv().is_ok() {}
        let all = async { while self.conversations.join_next().await.is_some() {} };
        let _ = timeout(PATIENCE, all).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "who has left needs no answer")]
async fn converse(stream: UnixStream, agent: mpsc::Sender<Asked>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    let mut start = (&mut reader).take(MAX_LINE);
    if !matches!(
        timeout(PATIENCE, start.read_line(&mut line)).await,
        Ok(Ok(_))
    ) {
        return;
    }
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            if agent.send(Asked { request, answer }).await.is_err() {
                return;
            }
            let Ok(answer) = answered.await else {
                return;
            };
            answer
        }
        Err(error) => Answer::refusal(format!("request not understood: {error}")),
    };
    if say(&mut writer, &answer.response).await.is_ok()
        && let Some((events, filter)) = answer.events
    {
        follow(reader, writer, events, &filter).await;
    }
}

/// Tells events until either end has enough.
async fn follow(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    mut events: broadcast::Receiver<Arc<Event>>,
    filter: &Filter,
) {
    use broadcast::error::RecvError;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            // It has nothing more to say; what it does is go.
            _ = reader.read_u8() => return,
        };
        let event = match event {
            Ok(event) => event,
            Err(RecvError::Lagged(count)) => Arc::new(Event {
                count: Some(count),
                ..Event::new(Kind::Lost)
            }),
            Err(RecvError::Closed) => return,
        };
        if filter.passes(&event) && say(&mut writer, &*event).await.is_err() {
            return;
        }
    }
}

async fn say(writer: &mut OwnedWriteHalf, what: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string(what)?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await
}
