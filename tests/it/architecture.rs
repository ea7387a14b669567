//! The invariants of ARCHITECTURE.md that can be read off the source.
//!
//! What is read is the code, not its comments: a small reader blanks comments and, where only
//! code counts, string literals and test modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The floors, bottom first. A folder may use folders of lower floors only; folders of one
/// floor never use each other.
const FLOORS: [&[&str]; 11] = [
    &["types"],
    &["api", "balance", "config", "ladder"],
    &["telemetry"],
    &["directory", "trust"],
    &["net"],
    &["gate"],
    &["discover", "mesh", "probe", "proxy", "admin"],
    &["app"],
    &["demo"],
    &["cli"],
    &["main"],
];

/// Folders that wait for nothing, open nothing and read no clock.
const PURE: [&str; 5] = ["types", "api", "balance", "config", "ladder"];

/// Longest file: past this one it wants to be two.
const LONGEST: usize = 600;

#[test]
fn folders_use_only_lower_floors() {
    let mut wrong = BTreeSet::new();
    for file in sources() {
        let from = file.folder();
        if from == "lib" {
            continue;
        }
        for (line, to) in file.edges() {
            let ok = match (floor(&from), floor(&to)) {
                (Some(f), Some(t)) => from == to || t < f,
                _ => false,
            };
            if !ok {
                wrong.insert(format!("{}:{line}: {from} -> {to}", file.shown()));
            }
        }
    }
    assert!(wrong.is_empty(), "these paths go up or sideways:\n{}", lines(&wrong));
}

#[test]
fn pure_floors_have_no_async_no_sockets_and_no_clock() {
    let words = ["tokio", "async", "await", "Instant", "spawn", "sleep"];
    let mut wrong = BTreeSet::new();
    for file in sources().filter(|f| PURE.contains(&&*f.folder())) {
        for (n, line) in file.product().lines().enumerate() {
            for word in words.iter().chain(&SOCKETS).filter(|w| has_word(line, w)) {
                wrong.insert(format!("{}:{}: {word}", file.shown(), n + 1));
            }
            // A time may be carried; it may not be asked for.
            if line.contains("SystemTime::now") || line.contains(".elapsed()") {
                wrong.insert(format!("{}:{}: asks the time", file.shown(), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "a pure floor names:\n{}", lines(&wrong));
}

const SOCKETS: [&str; 9] = [
    "TcpStream",
    "TcpListener",
    "TcpSocket",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "lookup_host",
    "socket2",
];

#[test]
fn only_net_names_sockets() {
    // The demo plays engines and a tailscaled, so it is the other end of our sockets.
    let may = ["net", "demo"];
    let mut wrong = BTreeSet::new();
    for file in sources().filter(|f| !may.contains(&&*f.folder())) {
        for (n, line) in file.product().lines().enumerate() {
            for word in SOCKETS.iter().filter(|w| has_word(line, w)) {
                wrong.insert(format!("{}:{}: {word}", file.shown(), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "sockets outside net/:\n{}", lines(&wrong));
}

#[test]
fn one_file_names_all_metrics() {
    let mut wrong = BTreeSet::new();
    for file in sources() {
        // The demo shows a person what to look for, by name.
        if file.shown() == "src/telemetry/families.rs" || file.folder() == "demo" {
            continue;
        }
        for (n, line) in file.without_tests().lines().enumerate() {
            if line.contains("\"tailherd_") {
                wrong.insert(format!("{}:{}", file.shown(), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "metric names outside telemetry/families.rs:\n{}", lines(&wrong));
}

#[test]
fn only_the_proxys_error_page_speaks_to_clients_of_errors() {
    let mut wrong = BTreeSet::new();
    let may = ["src/proxy/error", "src/api/error"];
    for file in sources() {
        let shown = file.shown();
        if may.iter().any(|m| shown.starts_with(m)) {
            continue;
        }
        for (n, line) in file.product().lines().enumerate() {
            if line.contains("api::error::body") || line.contains("error::body(") {
                wrong.insert(format!("{shown}:{}", n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "error bodies made outside proxy/error:\n{}", lines(&wrong));
}

#[test]
fn nothing_is_left_to_be_done() {
    let mut wrong = BTreeSet::new();
    // Written apart, so that this file does not find itself.
    let words = [["to", "do"], ["unimple", "mented"], ["TO", "DO"], ["FIX", "ME"], ["XX", "X"]];
    for file in sources() {
        for (n, line) in file.text.lines().enumerate() {
            for word in words.iter().map(|w| w.concat()).filter(|w| has_word(line, w)) {
                wrong.insert(format!("{}:{}: {word}", file.shown(), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "left over:\n{}", lines(&wrong));
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let wrong: BTreeSet<String> = sources()
        .chain(files("tests"))
        .chain(files("benches"))
        .map(|f| (f.text.lines().count(), f.shown()))
        .filter(|(n, shown)| *n > if shown == "src/main.rs" { 59 } else { LONGEST })
        .map(|(n, shown)| format!("{shown}: {n} lines"))
        .collect();
    assert!(wrong.is_empty(), "too long:\n{}", lines(&wrong));
}

#[test]
fn every_module_says_what_it_is_for() {
    let wrong: BTreeSet<String> = sources()
        .filter(|f| !f.is_test() && !f.text.starts_with("//! "))
        .map(|f| f.shown())
        .collect();
    assert!(wrong.is_empty(), "no words at the top:\n{}", lines(&wrong));
}

#[test]
fn the_reader_sees_edges_in_every_spelling() {
    #[track_caller]
    fn check(path: &str, text: &str, want: &[&str]) {
        let file = Source { path: path.into(), text: text.into() };
        let got: Vec<String> = file.edges().into_iter().map(|(_, to)| to).collect();
        assert_eq!(got, want, "{text}");
    }
    check("src/a/b.rs", "use crate::net::Io;", &["net"]);
    check(
        "src/a/b.rs",
        "use crate::{net::Io, types::{A, B},\n proxy};",
        &["net", "types", "proxy"],
    );
    check("src/a/b.rs", "fn f() -> crate :: net::Io {}", &["net"]);
    check("src/a/mod.rs", "use super::net::Io;", &["net"]);
    check("src/a/b.rs", "use super::net::Io;", &[]);
    check("src/a/b.rs", "use super::super::{net, proxy};", &["net", "proxy"]);
    check("src/a/b.rs", "mod tests { use super::super::net; }", &[]);
    check("src/a/b.rs", "mod tests { use super::super::super::net; }", &["net"]);
    check("src/a/b.rs", "mod tests { mod x {} } use super::super::net;", &["net"]);
    check(
        "src/a/b.rs",
        "// crate::net\n/* crate::net /* */ crate::x */ let s = \"crate::net\";",
        &[],
    );
    check(
        "src/a/b.rs",
        "let c = '\"'; crate::net; let d = '\"'; let r = r#\"crate::x\"#;",
        &["net"],
    );
    check("src/main.rs", "fn main() { tailherd::cli::run() }", &["cli"]);
    check("src/a/b.rs", "x::<'a>(crate::net::f::<'b>())", &["net"]);
    check("src/a/b.rs", "tailherd_requests::x; mycrate::net;", &[]);
}

fn floor(folder: &str) -> Option<usize> {
    FLOORS.iter().position(|names| names.contains(&folder))
}

fn lines(of: &BTreeSet<String>) -> String {
    of.iter().map(|l| format!("  {l}\n")).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part(line[..at].chars().next_back()) && !part(line[at + word.len()..].chars().next())
    })
}

/// A file of ours.
struct Source {
    /// From the package's folder.
    path: PathBuf,
    text: String,
}

fn sources() -> impl Iterator<Item = Source> {
    let all: Vec<Source> = files("src").collect();
    assert!(all.len() > 20, "the source folder was not found");
    all.into_iter()
}

fn files(folder: &str) -> impl Iterator<Item = Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.into_iter()
}

impl Source {
    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// The module path: `src/a/b.rs` is `[a, b]`, `src/a/mod.rs` is `[a]`.
    fn module(&self) -> Vec<String> {
        let path = self.path.strip_prefix("src").unwrap_or(&self.path).with_extension("");
        let mut parts: Vec<String> =
            path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
        if parts.last().is_some_and(|p| p == "mod") {
            parts.pop();
        }
        parts
    }

    fn folder(&self) -> String {
        self.module().into_iter().next().unwrap_or_default()
    }

    /// The code without comments and without what stands in strings.
    fn code(&self) -> String {
        blank(&self.text, true)
    }

    /// The code that is not a test.
    fn product(&self) -> String {
        if self.is_test() { String::new() } else { cut_tests(self.code()) }
    }

    /// The code that is not a test, strings included.
    fn without_tests(&self) -> String {
        if self.is_test() {
            return String::new();
        }
        // Cut by where the code says, in the text that still has its strings.
        let strings = blank(&self.text, false);
        let cut = cut_tests(self.code());
        strings
            .char_indices()
            .map(|(at, c)| if cut.as_bytes().get(at) == Some(&b'\0') { ' ' } else { c })
            .collect()
    }

    /// Whether the file or a folder it is in was declared as `#[cfg(test)] mod NAME;`.
    fn is_test(&self) -> bool {
        let module = self.module();
        (1..module.len()).any(|n| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let parent = root.join(module[..n].join("/"));
            let text = fs::read_to_string(parent.join("mod.rs"))
                .or_else(|_| fs::read_to_string(parent.with_extension("rs")))
                .unwrap_or_default();
            let declared = format!("mod {};", module[n]);
            text.split("#[cfg(test)]").skip(1).any(|after| {
                let line = after.trim_start().lines().next().unwrap_or_default();
                line.ends_with(&declared)
            })
        })
    }

    /// Every other folder this file names, with the line.
    fn edges(&self) -> Vec<(usize, String)> {
        let code = self.code();
        let module = self.module();
        let tokens = tokens(&code);
        let mut edges = Vec::new();
        // Braces that opened an inline module.
        let mut inline = Vec::new();
        let word = |i: usize| tokens.get(i).map_or("", |t: &(usize, &str)| t.1);
        let mut i = 0;
        while i < tokens.len() {
            let line = tokens[i].0;
            match word(i) {
                "{" => inline.push(i >= 2 && word(i - 2) == "mod"),
                "}" => {
                    inline.pop();
                }
                // A word right after `::` continues a path.
                _ if i > 0 && word(i - 1) == "::" => {}
                "crate" if word(i + 1) == "::" => {
                    edges.extend(heads(&tokens, i + 2).into_iter().map(|h| (line, h)));
                }
                // The binary names the library by its name.
                "tailherd" if word(i + 1) == "::" && module == ["main"] => {
                    edges.extend(heads(&tokens, i + 2).into_iter().map(|h| (line, h)));
                }
                "super" if word(i + 1) == "::" => {
                    let mut ups = 1;
                    let mut next = i + 2;
                    while word(next) == "super" && word(next + 1) == "::" {
                        ups += 1;
                        next += 2;
                    }
                    let depth = module.len() + inline.iter().filter(|is| **is).count();
                    if ups == depth {
                        edges.extend(heads(&tokens, next).into_iter().map(|h| (line, h)));
                    }
                }
                _ => {}
            }
            i += 1;
        }
        edges
    }
}

/// The first names of a path's rest, which may be a group: `{a::b, c::{d, e}}` gives a, c.
fn heads(tokens: &[(usize, &str)], at: usize) -> Vec<String> {
    let word = |i: usize| tokens.get(i).map_or("", |t| t.1);
    if word(at) != "{" {
        return vec![word(at).to_owned()];
    }
    let mut names = Vec::new();
    let mut depth = 0;
    let mut i = at;
    loop {
        match word(i) {
            "{" => depth += 1,
            "}" => depth -= 1,
            "" => break,
            name if depth == 1 && matches!(word(i - 1), "{" | ",") => names.push(name.to_owned()),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        i += 1;
    }
    names
}

/// Words, `::` and single signs, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    let bytes = code.as_bytes();
    let (mut i, mut line) = (0, 1);
    let part = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
    while i < bytes.len() {
        let start = i;
        match bytes[i] {
            b'\n' => line += 1,
            b if b.is_ascii_whitespace() => {}
            b if part(b) => {
                while i + 1 < bytes.len() && part(bytes[i + 1]) {
                    i += 1;
                }
                tokens.push((line, &code[start..=i]));
            }
            b':' if bytes.get(i + 1) == Some(&b':') => {
                i += 1;
                tokens.push((line, "::"));
            }
            _ => tokens.push((line, &code[start..=i])),
        }
        i += 1;
    }
    tokens
}

/// Blanks comments and, if wanted, what stands between quotes. Lengths and lines stay.
fn blank(text: &str, strings: bool) -> String {
    let bytes = text.as_bytes();
    let mut out: Vec<u8> = bytes.to_vec();
    let wipe = |out: &mut Vec<u8>, from: usize, to: usize| {
        for b in &mut out[from..to.min(bytes.len())] {
            if *b != b'\n' {
                *b = b' ';
            }
        }
    };
    let mut i = 0;
    while i < bytes.len() {
        let rest = &bytes[i..];
        if rest.starts_with(b"//") {
            let end = rest.iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| i + n);
            wipe(&mut out, i, end);
            i = end;
        } else if rest.starts_with(b"/*") {
            let (start, mut depth) = (i, 0);
            while i < bytes.len() {
                if bytes[i..].starts_with(b"/*") {
                    depth += 1;
                    i += 2;
                } else if bytes[i..].starts_with(b"*/") {
                    depth -= 1;
                    i += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    i += 1;
                }
            }
            wipe(&mut out, start, i);
        } else if let Some((open, end)) = string(bytes, i) {
            if strings {
                wipe(&mut out, i + open, end);
            }
            i = end.max(i + 1);
        } else {
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A string or character literal at `i`: the length of its opening and its end.
fn string(bytes: &[u8], i: usize) -> Option<(usize, usize)> {
    let after_word = i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_');
    let rest = &bytes[i..];
    let raw = usize::from(rest.starts_with(b"b") || rest.starts_with(b"c"));
    if !after_word && rest.get(raw) == Some(&b'r') {
        let hashes = rest[raw + 1..].iter().take_while(|b| **b == b'#').count();
        if rest.get(raw + 1 + hashes) == Some(&b'"') {
            let close: Vec<u8> =
                std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let open = raw + 2 + hashes;
            let len = rest[open..].windows(close.len()).position(|w| w == close)?;
            return Some((open, i + open + len + close.len()));
        }
    }
    match rest.first()? {
        b'"' => {
            let mut n = 1;
            while n < rest.len() && rest[n] != b'"' {
                n += if rest[n] == b'\\' { 2 } else { 1 };
            }
            Some((1, i + n + 1))
        }
        // A character; a lifetime has no second quote where a character has one.
        b'\'' if rest.get(1) == Some(&b'\\') => {
            let n = rest[3.min(rest.len())..].iter().position(|b| *b == b'\'')?;
            Some((1, i + 3 + n + 1))
        }
        b'\'' => {
            let text = std::str::from_utf8(&rest[1..]).ok()?;
            let c = text.chars().next()?;
            (rest.get(1 + c.len_utf8()) == Some(&b'\'')).then(|| (1, i + 2 + c.len_utf8()))
        }
        _ => None,
    }
}

/// Fills the bodies of `#[cfg(test)] mod x { … }` with NUL. Lines stay.
fn cut_tests(mut code: String) -> String {
    let mark = "#[cfg(test)]";
    let mut from = 0;
    while let Some(at) = code[from..].find(mark).map(|n| from + n) {
        from = at + mark.len();
        let Some(open) = code[from..].find(['{', ';']).map(|n| from + n) else { break };
        if code.as_bytes()[open] == b';' {
            continue;
        }
        let mut depth = 0usize;
        let mut end = code.len();
        for (n, b) in code.bytes().enumerate().skip(open) {
            match b {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        end = n + 1;
                        break;
                    }
                }
                _ => {}
            }
        }
        let filled: String =
            code[at..end].chars().map(|c| if c == '\n' { c } else { '\0' }).collect();
        // Other letters than ASCII would change lengths; code outside strings has none.
        if filled.len() == end - at {
            code.replace_range(at..end, &filled);
        }
        from = end;
    }
    code
}
