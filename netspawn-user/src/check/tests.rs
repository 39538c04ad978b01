//! The reference has the rules, and lists are summed up.

use super::*;

const REFERENCE: &str = "../docs/reference.md";
const START: &str = "<!-- check: made from netspawn-user/src/check/rules.rs -->\n";
const END: &str = "<!-- end of check -->\n";

fn table() -> String {
    let mut text =
        "\n| id | severity | found when | why it matters |\n|---|---|---|---|\n".to_owned();
    for rule in rules::ALL {
        text += &format!(
            "| `{}` | {} | {} | {} |\n",
            rule.id,
            rule.severity.name(),
            rule.when,
            rule.why
        );
    }
    text + "\n"
}

#[test]
fn reference_has_every_rule() {
    let reference = std::fs::read_to_string(REFERENCE).unwrap();
    let (head, rest) = reference.split_once(START).expect("the mark is there");
    let (found, tail) = rest.split_once(END).expect("the mark is there");
    let expected = table();
    // As the snapshots of the suites are written.
    if std::env::var("INSTA_UPDATE").is_ok_and(|value| value == "always") {
        std::fs::write(REFERENCE, format!("{head}{START}{expected}{END}{tail}")).unwrap();
        return;
    }
    assert!(
        found == expected,
        "docs/reference.md is not as the rules are; `INSTA_UPDATE=always cargo test -p \
         netspawn-user check` writes it anew"
    );
}

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
