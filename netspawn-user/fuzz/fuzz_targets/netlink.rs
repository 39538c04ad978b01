//! Netlink datagrams: the walk over messages and attributes ends within the bytes, and
//! every reader takes whatever is in them.
#![no_main]

use netspawn_user::net::{netlink, read};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut total = 0;
    for message in netlink::messages(bytes) {
        total += message.body.len() + 16;
        assert!(total <= bytes.len(), "more messages than bytes");
        let attributes: usize = message.attrs(0).map(|(_, value)| value.len() + 4).sum();
        assert!(
            attributes <= message.body.len() + 3,
            "more attributes than bytes"
        );
        read::link(&message);
        read::address(&message);
        read::concerns_routes(&message);
        read::route(&message);
        read::neighbor(&message);
        read::proxy(&message);
        read::station(&message);
    }
});
