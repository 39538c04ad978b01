//! `.nspawn` files: any bytes.
#![no_main]

use std::path::Path;

use netspawn_user::source::parse_nspawn;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(problems) = parse_nspawn(Path::new("web.nspawn"), bytes) {
        assert!(!problems.is_empty());
        for problem in problems {
            let line = problem.to_string();
            assert!(line.starts_with("web.nspawn"), "{line}");
        }
    }
});
