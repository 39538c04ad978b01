//! The syntax of systemd's configuration files, with the lines that things are
//! on: systemd.syntax(7), and `config_parse` of systemd's
//! src/shared/conf-parser.c where the manual is silent.

/// Blanks around keys, values and words that a line can have.
const BLANKS: [char; 2] = [' ', '\t'];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a line, with those that continue it, says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `[name]`.
    Section(String),
    /// `key=value`.
    Assignment(String, Value),
    /// Something that begins as a section and is none; systemd refuses the file.
    BrokenSection(String),
    /// Neither section nor assignment; systemd ignores it.
    Other(String),
    /// No UTF-8; systemd refuses the file.
    NotText,
}

/// The right side of an assignment, which may stretch over lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The words and the line that each is on.
    words: Vec<(usize, String)>,
    text: String,
}

impl Value {
    /// All of it, without the blanks at either end.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The words, with the line of each.
    pub fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        self.words.iter().map(|(line, word)| (*line, word.as_str()))
    }
}

/// Everything in a file but comments and empty lines, with the line where it
/// starts.
pub fn items(bytes: &[u8]) -> Vec<(usize, Item)> {
    let mut items = Vec::new();
    let mut joined = Joined::default();
    let mut marked = false;
    for (index, line) in lines(bytes).enumerate() {
        if matches!(trimmed(line).first(), Some(b'#' | b';')) {
            continue;
        }
        let line = match line.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) if !marked => {
                marked = true;
                rest
            }
            _ => line,
        };
        let backslashes = line.iter().rev().take_while(|byte| **byte == b'\\').count();
        let continued = backslashes % 2 == 1;
        joined.push(index + 1, line, continued);
        if !continued {
            items.extend(std::mem::take(&mut joined).item());
        }
    }
    items.extend(joined.item());
    items
}

/// Lines as systemd's `read_line` has them: ended by LF, CR, both in either
/// order, or NUL.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = rest
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'\r' | 0))
            .unwrap_or(rest.len());
        let (line, end) = rest.split_at(length);
        let ended = match end {
            [b'\n', b'\r', ..] | [b'\r', b'\n', ..] => 2,
            [] => 0,
            _ => 1,
        };
        rest = &end[ended..];
        Some(line)
    })
}

fn blank(byte: &u8) -> bool {
    BLANKS.contains(&char::from(*byte))
}

/// As systemd's `string_is_safe` has it.
fn unsafe_in_names(letter: char) -> bool {
    letter.is_ascii_control() || matches!(letter, '"' | '\'' | '\\')
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().take_while(|byte| blank(byte)).count();
    let bytes = &bytes[start..];
    let end = bytes.iter().rev().take_while(|byte| blank(byte)).count();
    &bytes[..bytes.len() - end]
}

/// A line and those that continue it.
#[derive(Default)]
struct Joined {
    text: Vec<u8>,
    /// Where in the text each line of the file starts.
    starts: Vec<(usize, usize)>,
}

impl Joined {
    fn push(&mut self, number: usize, line: &[u8], continued: bool) {
        self.starts.push((self.text.len(), number));
        self.text.extend_from_slice(line);
        if continued {
            self.text.pop();
            self.text.push(b' ');
        }
    }

    /// The number of the line that has this byte of the text.
    fn line(&self, offset: usize) -> usize {
        let next = self.starts.partition_point(|(start, _)| *start <= offset);
        self.starts[next.saturating_sub(1)].1
    }

    fn item(self) -> Option<(usize, Item)> {
        let start = self.text.iter().take_while(|byte| blank(byte)).count();
        let text = trimmed(&self.text);
        if text.is_empty() {
            return None;
        }
        let item = match std::str::from_utf8(text) {
            Ok(text) => self.read(start, text),
            Err(_) => Item::NotText,
        };
        Some((self.line(start), item))
    }

    /// What a text says that starts at this offset and has no blanks around.
    fn read(&self, start: usize, text: &str) -> Item {
        if let Some(rest) = text.strip_prefix('[') {
            return match rest.strip_suffix(']') {
                Some(name) if !name.contains(unsafe_in_names) => Item::Section(name.to_owned()),
                Some(_) | None => Item::BrokenSection(text.to_owned()),
            };
        }
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Item::Assignment(
                key.trim_end_matches(BLANKS).to_owned(),
                self.value(start + key.len() + 1, value),
            ),
            _ => Item::Other(text.to_owned()),
        }
    }

    fn value(&self, start: usize, text: &str) -> Value {
        let mut next = start;
        let mut words = Vec::new();
        for word in text.split(BLANKS) {
            if !word.is_empty() {
                words.push((self.line(next), word.to_owned()));
            }
            next += word.len() + 1;
        }
        Value {
            words,
            text: text.trim_matches(BLANKS).to_owned(),
        }
    }
}
