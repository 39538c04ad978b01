//! What a packet costs on its way: network to machines, machines to network, machine to
//! machine.
