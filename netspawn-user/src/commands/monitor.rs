//! `monitor`.

use std::{future, io};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
};

use crate::{
    cli::{Global, MonitorArgs},
    control::{Client, Lines, Request, RunDir},
    datapath::pins::Pins,
    event::{Event, Filter, Kind},
    outcome::Outcome,
    output,
};

/// Prints what happens until told to end, one line each.
///
/// # Errors
/// When no agent runs, when it ends, or when a machine is named that it does not
/// know.
pub fn run(global: &Global, args: &MonitorArgs) -> Result<Outcome> {
    let client = connect(global)?;
    let (response, lines) = client.follow(&Request::Monitor(Filter {
        machines: args.machines.clone(),
        reasons: args.reasons.clone(),
    }))?;
    for line in response.failed {
        tracing::warn!("{line}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let json = global.json;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tracing::info!("following the agent; Ctrl-C ends this");
        // A terminal that is held up, or a pager, must not keep Ctrl-C from working.
        let printing = tokio::task::spawn_blocking(move || print(lines, json));
        tokio::select! {
            _ = interrupt.recv() => Ok(None),
            _ = terminate.recv() => Ok(None),
            () = stdout_closed() => Ok(None),
            end = printing => end.context("cannot print")?.map(Some),
        }
    });
    runtime.shutdown_background();
    let Some(end) = result? else {
        return Ok(Outcome::Done);
    };
    let uplinks = Pins::new(&global.bpf_dir).uplinks()?;
    let name = uplinks.first().map_or("UPLINK", |uplink| &uplink.name);
    let why = end
        .unwrap_or_else(|| "without a word, as if it was killed; its log may say more".to_owned());
    if uplinks.is_empty() {
        bail!(
            "the agent has ended: {why}; machines are served again after `netspawn-xdp attach {name}`"
        );
    }
    bail!(
        "the agent has ended: {why}; the data plane goes on without it; \
         `netspawn-xdp attach {name}` starts another"
    );
}

fn connect(global: &Global) -> Result<Client> {
    let run_dir = RunDir::new(&global.run_dir);
    run_dir.check_namespace()?;
    match run_dir.reach().context("this needs root")? {
        Some(client) => Ok(client),
        None => {
            let uplinks = Pins::new(&global.bpf_dir).uplinks()?;
            let name = uplinks.first().map_or("UPLINK", |uplink| &uplink.name);
            bail!(
                "no agent runs, and it alone knows what happens; start one: \
                 `netspawn-xdp attach {name}`"
            )
        }
    }
}

/// Prints lines until the agent ends; why, if it says so.
fn print(mut lines: Lines, json: bool) -> Result<Option<String>> {
    while let Some(line) = lines.line().context("cannot read from the agent")? {
        let event: Event = serde_json::from_str(&line)
            .with_context(|| format!("the agent, of another version, says {line}"))?;
        let text = if json { line } else { event.to_string() };
        output::print(&format!("{text}\n"))?;
        if event.kind == Kind::End {
            return Ok(event.message);
        }
    }
    Ok(None)
}

/// Waits until nobody reads stdout any more, where that can be waited for: at a
/// pipe or a socket.
async fn stdout_closed() {
    // SAFETY: the descriptor is the process's own for as long as it lives.
    let stdout = unsafe { AsyncFd::register_with_interest(io::stdout(), Interest::ERROR) };
    let Ok(stdout) = stdout else {
        return future::pending().await;
    };
    let _ = stdout.ready(Interest::ERROR).await;
}
