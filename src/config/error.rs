//! One error, said so that it can be mended: where, what, and what was probably meant.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {why}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        why: String,
    },
    /// Something in the text is wrong.
    #[error("{0}")]
    Wrong(Box<Finding>),
    /// An environment variable is wrong.
    #[error("environment variable {name}: {what}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// One thing that is wrong in a configuration text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, if the text came from one.
    pub file: Option<PathBuf>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Where in the configuration, as `access[0].verbs[1]`; empty for the whole.
    pub path: String,
    /// What is wrong, and what was expected.
    pub what: String,
    /// The line of the text.
    pub source: String,
    /// The nearest key or word.
    pub nearest: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or(Path::new("config"));
        write!(f, "{}:{}:{}: ", file.display(), self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}", self.what)?;
        let number = self.line.to_string();
        // Tabs stay tabs, so that the caret stands under its character in any terminal.
        let pad: String = self
            .source
            .chars()
            .take(self.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let gap = " ".repeat(number.len());
        write!(f, "\n{gap} |\n{number} | {}\n{gap} | {pad}^", self.source)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "\n{gap} = did you mean `{nearest}`?")?;
        }
        Ok(())
    }
}

/// One step into a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Item(usize),
}

/// A value that cannot be, by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) path: Vec<Step>,
    pub(super) what: String,
    pub(super) nearest: Option<String>,
}

/// A configuration text and the file it came from.
pub(super) struct SourceText<'a> {
    pub(super) file: Option<&'a Path>,
    pub(super) text: &'a str,
}

impl SourceText<'_> {
    /// What the parser says, with its path.
    pub(super) fn refuse(&self, path: &str, error: &json5::Error) -> ConfigError {
        let message = error.to_string();
        let message = match error.position() {
            Some(at) => message.strip_suffix(&format!(" at {at}")).unwrap_or(&message),
            None => &message,
        };
        let path = path.strip_suffix(".?").unwrap_or(path);
        let mut path = if path == "." || path == "?" { String::new() } else { path.to_owned() };
        let mut at = error.position();
        // The parser can place neither a key that stands twice nor the end of the text.
        if let Some(key) =
            message.strip_prefix("duplicate field `").and_then(|m| m.strip_suffix('`'))
        {
            at = twice(self.text, key).or(at);
            path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        } else if message.starts_with("EOF ") {
            at = Some(json5::Position::from_offset(self.text.trim_end().len(), self.text));
        }
        let nearest = nearest_of(message);
        let mut what = plainly(message);
        // One good guess helps more than thirty keys.
        if nearest.is_some() && what.matches('`').count() > 2 * 8 {
            what.truncate(what.find(", expected").unwrap_or(what.len()));
        }
        self.finding(at, &path, &what, nearest)
    }

    /// A wrong value, found again in the text.
    pub(super) fn place(&self, wrong: Wrong) -> ConfigError {
        let at = find(self.text, &wrong.path);
        self.finding(at, &spelled(&wrong.path), &wrong.what, wrong.nearest)
    }

    /// An error at the start of the text.
    pub(super) fn whole(&self, at: json5::Position, what: &str) -> ConfigError {
        self.finding(Some(at), "", what, None)
    }

    fn finding(
        &self,
        at: Option<json5::Position>,
        path: &str,
        what: &str,
        nearest: Option<String>,
    ) -> ConfigError {
        let at = at.unwrap_or(json5::Position { line: 0, column: 0 });
        // The same line ends as the parser counts.
        let text = self.text.replace("\r\n", "\n");
        let source =
            text.split(['\n', '\r', '\u{2028}', '\u{2029}']).nth(at.line).unwrap_or_default();
        ConfigError::Wrong(Box::new(Finding {
            file: self.file.map(Path::to_owned),
            line: at.line + 1,
            column: at.column + 1,
            path: inert(path),
            what: inert(what),
            source: inert(source),
            nearest,
        }))
    }
}

/// The text with one replacement sign for each character that would move a terminal's cursor
/// or turn its writing around.
fn inert(text: &str) -> String {
    let odd = |c: char| {
        (c.is_control() && c != '\t')
            || matches!(c, '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().map(|c| if odd(c) { '\u{fffd}' } else { c }).collect()
}

/// A path as it is written: `access[0].verbs[1]`.
pub(super) fn spelled(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) if out.is_empty() => out.push_str(key),
            Step::Key(key) => out.extend([".", key]),
            Step::Item(at) => out.push_str(&format!("[{at}]")),
        }
    }
    out
}

/// The word of `known` that `word` was probably meant to be.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let word = word.to_lowercase();
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|k| (distance(&word, &k.to_lowercase()), k))
        .filter(|(d, _)| *d <= allowed)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k.to_owned())
}

/// How many characters to add, drop, change or swap with a neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows: [Vec<usize>; 3] = [vec![], vec![], (0..=b.len()).collect()];
    for i in 1..=a.len() {
        rows.rotate_left(1);
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[0][j - 2] + 1);
            }
            row.push(best);
        }
        rows[2] = row;
    }
    rows[2][b.len()]
}

/// The parser's words for people who do not write parsers.
fn plainly(message: &str) -> String {
    let mut message = match message {
        "expected opening bracket" => return "expected a list: [ … ]".to_owned(),
        "expected opening brace" => return "expected an object: { … }".to_owned(),
        "expected bool" => return "expected true or false".to_owned(),
        "expected string" => return "expected a string in quotes".to_owned(),
        "expected number" => return "expected a number".to_owned(),
        "expected string or object" => return "expected a word in quotes".to_owned(),
        "expected comma" => return "expected a comma, or the end of the list or object".to_owned(),
        _ if message.starts_with("EOF ") => return "the text ends too early".to_owned(),
        other => other.to_owned(),
    };
    for (theirs, ours) in [
        ("unknown field", "unknown key"),
        ("unknown variant", "unknown word"),
        ("missing field", "missing key"),
        ("duplicate field", "this key stands twice:"),
        ("invalid type: ", ""),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected an object"),
    ] {
        message = message.replacen(theirs, ours, 1);
    }
    message
}

/// For serde's "unknown field `x`, expected one of `a`, `b`": the nearest of those.
fn nearest_of(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    // Every second piece stands between backticks; the first is the word itself.
    let mut quoted = message.split('`').skip(1).step_by(2);
    let word = quoted.next()?;
    nearest(word, quoted)
}

const HERE: &str = "here";

/// Where the value at `path` begins: the text is read once more and the reading stopped there,
/// so that the parser itself says the place.
fn find(text: &str, path: &[Step]) -> Option<json5::Position> {
    let mut de = json5::Deserializer::from_str(text);
    match Down(path).deserialize(&mut de) {
        Err(error) => error.position(),
        Ok(()) => None,
    }
}

struct Down<'a>(&'a [Step]);

impl<'de> DeserializeSeed<'de> for Down<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Down<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HERE)
    }

    // Scalars need no method: serde's default is an error, which is what is wanted here.

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Item(at), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(HERE));
        };
        for _ in 0..*at {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element_seed(Down(rest))?;
        Err(A::Error::custom(HERE))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(key), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(HERE));
        };
        while let Some(found) = map.next_key::<String>()? {
            if found == *key {
                return map.next_value_seed(Down(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        // A key left to its default: its object is the place.
        Err(A::Error::custom(HERE))
    }
}

/// Where `key` stands for the second time in one object.
fn twice(text: &str, key: &str) -> Option<json5::Position> {
    let mut de = json5::Deserializer::from_str(text);
    Twice(key).deserialize(&mut de).err()?.position()
}

#[derive(Clone, Copy)]
struct Twice<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Twice<'_> {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Twice<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut met = false;
        while let Some(again) = map.next_key_seed(KeyOf(self.0, met))? {
            met |= again;
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

/// Reads a key; an error if it is the one looked for and was met before.
struct KeyOf<'a>(&'a str, bool);

impl<'de> DeserializeSeed<'de> for KeyOf<'_> {
    type Value = bool;
    fn deserialize<D: serde::Deserializer<'de>>(self, de: D) -> Result<bool, D::Error> {
        de.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyOf<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.0, self.1) {
            (true, true) => Err(E::custom(HERE)),
            (is, _) => Ok(is),
        }
    }
}
