//! How a command ends, and how that is told.

use std::{fmt, io};

use crate::problem::Problem;

/// A command that did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is done: exit code 0.
    Done,
    /// Done in part: exit code 3. Each line says what is not done, and what to
    /// do about it.
    Partly(Vec<String>),
}

impl Outcome {
    /// [`Outcome::Done`] when nothing remains.
    pub fn of(remains: Vec<String>) -> Self {
        if remains.is_empty() {
            Outcome::Done
        } else {
            Outcome::Partly(remains)
        }
    }

    /// The process's exit code.
    pub const fn code(&self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::Partly(_) => 3,
        }
    }
}

/// A command line that makes no sense although it parses: exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A failure that has been told already, as data: exit code 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl std::error::Error for Failed {}

/// Several problems as one error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The exit code for an error.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.downcast_ref::<Usage>().is_some() {
        return 2;
    }
    // `netspawn-xdp list | head`: the reader has seen enough.
    let closed = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    });
    u8::from(!closed)
}

/// The lines that tell an error: the causes after the message, without what
/// repeats the one before.
pub fn lines(error: &anyhow::Error) -> Vec<String> {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_follow_the_message_once() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(13))
            .context("cannot open /x")
            .unwrap_err();
        assert_eq!(
            lines(&error),
            ["cannot open /x: Permission denied (os error 13)"]
        );
        let error = anyhow!("same").context("it is the same");
        assert_eq!(lines(&error), ["it is the same"]);
    }

    #[test]
    fn codes_follow_the_contract() {
        assert_eq!(Outcome::of(vec![]).code(), 0);
        assert_eq!(Outcome::of(vec!["x".to_owned()]).code(), 3);
        assert_eq!(code(&anyhow!("x")), 1);
        assert_eq!(code(&anyhow!(Usage("x".to_owned())).context("y")), 2);
        let closed = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(code(&closed.context("cannot write")), 0);
    }
}
