//! ARP requests from the network for machines' addresses.

use anyhow::Result;

use super::answers::{self, Question};
use crate::{figure::Figure, run::Run};

/// Answers per CPU-second and the median latency of one, by number of addresses.
///
/// # Errors
/// Without root, when a world cannot be made, when nobody answers, or when the user stops.
pub fn run(run: &Run) -> Result<Vec<Figure>> {
    answers::run(run, Question::Arp)
}
