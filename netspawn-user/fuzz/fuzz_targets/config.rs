//! `netspawn.toml`: it is read, or every fault is told in one line.
#![no_main]

use std::path::Path;

use netspawn_user::config::Config;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(problems) = Config::parse(Path::new("netspawn.toml"), text) {
        assert!(!problems.is_empty());
        for problem in problems {
            let line = problem.to_string();
            assert!(line.starts_with("netspawn.toml"), "{line}");
        }
    }
});
