//! Machine files: they are read, or every fault is told in one line.
#![no_main]

use std::path::Path;

use netspawn_user::source::parse_machine;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(problems) = parse_machine(Path::new("web.toml"), text) {
        assert!(!problems.is_empty());
        for problem in problems {
            let line = problem.to_string();
            assert!(line.starts_with("web.toml"), "{line}");
        }
    }
});
