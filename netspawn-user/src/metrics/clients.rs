//! Which clients are let go when there are too many.
//!
//! Who says nothing, or does not read, must not keep others out. So those that have not asked
//! yet and those that are answered have room each for some, and where it is used up, the one
//! that has been there longest goes: whoever means it is done in milliseconds.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::AbortHandle;

/// How many clients may be silent.
pub const ASKING: usize = 128;
/// How many may be answered.
pub const ANSWERED: usize = 16;

/// Clients by what they are at.
#[derive(Clone, Default)]
pub struct Clients(Arc<Mutex<Rooms>>);

#[derive(Default)]
struct Rooms {
    next: u64,
    asking: VecDeque<(u64, AbortHandle)>,
    answered: VecDeque<(u64, AbortHandle)>,
}

/// A client, which leaves when it is dropped.
pub struct Client {
    clients: Clients,
    number: u64,
}

impl Clients {
    #[expect(
        clippy::disallowed_methods,
        reason = "a poisoned lock has a whole value in it"
    )]
    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        // Whoever panicked has left them whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a client that comes.
    pub fn client(&self) -> Client {
        let mut rooms = self.rooms();
        rooms.next += 1;
        Client {
            number: rooms.next,
            clients: self.clone(),
        }
    }

    /// The client of that number has come, and runs as this task.
    pub fn comes(&self, number: u64, task: AbortHandle) {
        // One that has left already will not leave again.
        if !task.is_finished() {
            enter(&mut self.rooms().asking, ASKING, (number, task));
        }
    }
}

fn enter(room: &mut VecDeque<(u64, AbortHandle)>, size: usize, client: (u64, AbortHandle)) {
    room.push_back(client);
    while room.len() > size {
        if let Some((_, task)) = room.pop_front() {
            task.abort();
        }
    }
}

impl Client {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// It has asked, and is answered from now on.
    pub fn has_asked(&self) {
        let mut rooms = self.clients.rooms();
        let at = rooms.asking.iter().position(|(n, _)| *n == self.number);
        if let Some(client) = at.and_then(|at| rooms.asking.remove(at)) {
            enter(&mut rooms.answered, ANSWERED, client);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut rooms = self.clients.rooms();
        rooms.asking.retain(|(number, _)| *number != self.number);
        rooms.answered.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// Lets all tasks run.
    async fn settle() {
        for _ in 0..2 * (ASKING + ANSWERED) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn oldest_of_too_many_goes_and_nobody_else() {
        let clients = Clients::default();
        let mut tasks = Vec::new();
        let mut come = |asks: bool| {
            let client = clients.client();
            let number = client.number();
            let task = tokio::spawn(async move {
                let _client = client;
                pending::<()>().await;
            });
            clients.comes(number, task.abort_handle());
            if asks {
                // As its task does it.
                let again = Client {
                    clients: clients.clone(),
                    number,
                };
                again.has_asked();
                std::mem::forget(again);
            }
            tasks.push(task);
        };
        (0..ANSWERED).for_each(|_| come(true));
        (0..ASKING + 3).for_each(|_| come(false));
        settle().await;
        let ended = |tasks: &[tokio::task::JoinHandle<()>]| -> Vec<usize> {
            let ended = tasks
                .iter()
                .enumerate()
                .filter(|(_, task)| task.is_finished());
            ended.map(|(at, _)| at).collect()
        };
        // The silent ones push each other out, and nobody who is answered.
        assert_eq!(ended(&tasks), [ANSWERED, ANSWERED + 1, ANSWERED + 2]);
        {
            let rooms = clients.rooms();
            let sizes = (rooms.asking.len(), rooms.answered.len());
            assert_eq!(sizes, (ASKING, ANSWERED));
        }
        // One more who asks takes the place of the first who did.
        let client = clients.client();
        let number = client.number();
        let task = tokio::spawn(pending::<()>());
        clients.comes(number, task.abort_handle());
        client.has_asked();
        settle().await;
        assert!(tasks[0].is_finished() && !tasks[1].is_finished());
        assert_eq!(clients.rooms().answered.len(), ANSWERED);
        drop(client);
        assert_eq!(clients.rooms().answered.len(), ANSWERED - 1);
    }
}
