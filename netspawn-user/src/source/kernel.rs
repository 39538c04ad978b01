//! What the kernel has of setups without this program: host routes to ports and
//! proxy neighbors.

use super::layers::Layers;
use crate::model::Host;

/// Declares a machine for each port that has host routes.
pub fn read(_host: &Host, _layers: &mut Layers) {}
