//! When engines have last said what links are theirs.
//!
//! An engine is asked beside the loop, so that a link is there before its engine has been
//! asked again. A link of an engine whose users name links must not be taken for another's
//! in the meantime.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::source::Source;

/// When engines were last asked and what came of it, shared by who asks and who reads.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<Mutex<Answered>>);

/// [`Answers`] at one moment.
#[derive(Clone, Debug, Default)]
pub struct Answered(BTreeMap<Source, Answer>);

/// Of one engine, as far as it was asked by this process.
#[derive(Clone, Copy, Debug, Default)]
struct Answer {
    /// When it was asked what it has listed last, and whether it may have users.
    listed: Option<(Instant, bool)>,
    /// When it was last found not to be there.
    absent: Option<Instant>,
}

impl Answers {
    #[expect(
        clippy::disallowed_methods,
        reason = "a poisoned lock has a whole value in it"
    )]
    fn all(&self) -> MutexGuard<'_, Answered> {
        // Whoever panicked has left whole answers.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine that was asked then has listed its machines, which are kept; `users`: it
    /// may have some that name links.
    pub fn listed(&self, source: Source, asked: Instant, users: bool) {
        self.all().0.entry(source).or_default().listed = Some((asked, users));
    }

    /// An engine that was looked for then is not there.
    pub fn absent(&self, source: Source, asked: Instant) {
        self.all().0.entry(source).or_default().absent = Some(asked);
    }

    /// As they are now. What is read of the records after this is no older.
    pub fn now(&self) -> Answered {
        self.all().clone()
    }
}

impl Answered {
    fn of(&self, source: Source) -> Answer {
        self.0.get(&source).copied().unwrap_or_default()
    }

    /// An engine's record could not be read.
    pub fn forget(&mut self, source: Source) {
        self.0.remove(&source);
    }

    /// Whether an engine has listed its machines, by a list begun after that moment.
    pub fn has_listed_since(&self, source: Source, since: Instant) -> bool {
        let listed = self.of(source).listed;
        listed.is_some_and(|(asked, _)| asked > since)
    }

    /// Whether an engine may have made a link for one of its users that is not in its
    /// record. `since`: when the link was first seen; `kept`: whether the record of an
    /// earlier process has users; `there`: whether the engine may be there now.
    pub fn may_have_made(&self, source: Source, since: Instant, kept: bool, there: bool) -> bool {
        let Answer { listed, absent } = self.of(source);
        match listed {
            Some((asked, _)) if asked > since => false,
            // It has run, and may have made the link before it ended.
            Some((_, users)) => users,
            // One that has run for an earlier process may be back at any moment.
            None => (there || kept) && absent.is_none_or(|asked| asked <= since),
        }
    }

    /// Whether an engine has users who name links, as far as is known.
    pub fn has_users(&self, source: Source, kept: bool) -> bool {
        self.of(source).listed.map_or(kept, |(_, users)| users)
    }
}

/// Whether something is at one of these paths. What cannot be looked at may be there.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be looked at may be there, which is the careful answer"
)]
pub fn is_there(paths: &[&str]) -> bool {
    paths
        .iter()
        .any(|path| Path::new(path).try_exists().unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn link_is_an_engines_until_it_has_listed_since() {
        let answers = Answers::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let may = |since, kept, there| {
            let now = answers.now();
            now.may_have_made(Source::Incus, since, kept, there)
        };
        // Never asked: what is not there makes no links, unless it has run before.
        assert!(!may(at(10), false, false));
        assert!(may(at(10), false, true));
        assert!(may(at(10), true, false));
        // Something else listens there, as an engine of another namespace.
        answers.absent(Source::Incus, at(20));
        assert!(!may(at(10), false, true));
        assert!(may(at(20), false, true));
        assert!(!may(at(10), true, false));
        assert!(may(at(20), true, false));
        // It has listed, and has users: links that came later may be theirs.
        answers.listed(Source::Incus, at(30), true);
        assert!(!may(at(29), true, true));
        assert!(may(at(30), true, true));
        assert!(may(at(40), false, false));
        // A later failure changes nothing.
        answers.absent(Source::Incus, at(50));
        assert!(may(at(40), false, false));
        // Nobody but root uses it.
        answers.listed(Source::Incus, at(60), false);
        assert!(!may(at(70), true, true));
        let mut now = answers.now();
        assert!(now.has_listed_since(Source::Incus, at(59)));
        assert!(!now.has_listed_since(Source::Incus, at(60)));
        assert!(!now.has_listed_since(Source::Docker, at(0)));
        now.forget(Source::Incus);
        assert!(now.may_have_made(Source::Incus, at(10), false, true));
    }
}
