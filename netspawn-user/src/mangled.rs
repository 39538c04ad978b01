//! For tests of what reads others' words: documents that are almost right.

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, json};

/// A document in which a few values are others, mostly of their kind, or are gone.
pub fn json(valid: Value) -> impl Strategy<Value = Value> {
    let change = (any::<Index>(), 0..10, text_value(), number(), other());
    vec(change, 1..3).prop_map(move |changes| {
        let mut document = valid.clone();
        for (index, kind, text, number, other) in changes {
            let mut places = Vec::new();
            paths(&document, "", &mut places);
            if let Some(there) = document.pointer_mut(index.get::<String>(&places)) {
                *there = match (kind, &there) {
                    (0, _) => Value::Null,
                    (1, _) => other,
                    (_, Value::String(_)) => text,
                    (_, Value::Number(_)) => number,
                    _ => other,
                };
            }
        }
        document
    })
}

/// A text in which a few bytes are others, missing, or more.
pub fn text(valid: &str) -> impl Strategy<Value = String> {
    let valid = valid.as_bytes().to_vec();
    let change = (any::<Index>(), 0..3_usize, vec(any::<u8>(), 0..3));
    vec(change, 0..6).prop_map(move |changes| {
        let mut text = valid.clone();
        for (index, gone, new) in changes {
            let at = index.index(text.len() + 1);
            let end = (at + gone).min(text.len());
            text.splice(at..end, new);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// Numbers that are at some limit.
fn number() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(-1),
        json!(0),
        json!(1),
        json!(255),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(0.5),
    ])
}

/// Texts that are something else, nearly something, or nothing.
fn text_value() -> impl Strategy<Value = Value> {
    let texts = prop::sample::select(vec![
        "",
        " ",
        "\0",
        "é/ü",
        "0.0.0.0/0",
        "::/0",
        "255.255.255.255/32",
        "203.0.113.9/33",
        "::ffff:203.0.113.9/128",
        "fe80::1%eth0",
        "203.0.113.9,",
        "ff:ff:ff:ff:ff:ff",
        "true",
    ]);
    prop_oneof![
        4 => texts.prop_map(Value::from),
        1 => any::<String>().prop_map(Value::from),
        1 => "[a-z]{300}".prop_map(Value::from),
    ]
}

/// Values of any kind.
fn other() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![number(), text_value(), any::<bool>().prop_map(Value::from)];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec(("[a-z.]{0,6}", inner), 0..3).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

/// Pointers to all values of a document.
fn paths(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let key = key.replace('~', "~0").replace('/', "~1");
                paths(value, &format!("{here}/{key}"), found);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                paths(value, &format!("{here}/{index}"), found);
            }
        }
        _ => {}
    }
}
