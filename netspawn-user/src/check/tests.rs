//! Rules have sound names and words, and lists are summed up.

use super::*;

#[test]
fn ids_are_kebab_case_and_unique() {
    for (index, rule) in rules::ALL.iter().enumerate() {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(rule.id.chars().all(plain), "{}", rule.id);
        assert!(rules::ALL[..index].iter().all(|other| other.id != rule.id));
        assert!(
            rule.why.ends_with('.') && rule.when.ends_with('.'),
            "{}",
            rule.id
        );
    }
}

#[test]
fn many_are_summed_up() {
    assert_eq!(sum_up::<&str>([]), "");
    assert_eq!(sum_up(["a", "b", "c"]), "a, b, c");
    let many: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    assert_eq!(sum_up(&many), "0, 1, 2 and 37 more");
    assert_eq!(subject(&many, "machines"), "40 machines");
    assert_eq!(subject(&["web"], "machines"), "web");
}
