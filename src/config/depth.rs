//! How deep brackets nest, before anything recursive reads the text.

use json5::Position;

/// Deeper than any configuration, far from the end of the stack.
const MAX: usize = 64;

/// Where the text nests too deep, if it does.
pub(super) fn too_deep(text: &str) -> Option<Position> {
    let mut depth = 0_usize;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '[' | '{' => {
                depth += 1;
                if depth > MAX {
                    return Some(Position::from_offset(at, text));
                }
            }
            ']' | '}' => depth = depth.saturating_sub(1),
            '"' | '\'' => {
                while let Some((_, inner)) = chars.next() {
                    match inner {
                        '\\' => drop(chars.next()),
                        end if end == c => break,
                        // A string that is not closed is an error for the parser; here it must
                        // not hide the brackets that follow it.
                        '\n' | '\r' => break,
                        _ => {}
                    }
                }
            }
            '/' if chars.peek().is_some_and(|(_, c)| *c == '/') => {
                while chars.next_if(|(_, c)| !is_line_end(*c)).is_some() {}
            }
            '/' if chars.peek().is_some_and(|(_, c)| *c == '*') => {
                chars.next();
                let mut star = false;
                for (_, c) in chars.by_ref() {
                    if star && c == '/' {
                        break;
                    }
                    star = c == '*';
                }
            }
            _ => {}
        }
    }
    None
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_brackets_count() {
        let deep = "[".repeat(MAX + 1);
        assert_eq!(too_deep(&deep), Some(Position { line: 0, column: MAX }));
        assert!(too_deep(&deep[1..]).is_none());
        for quoted in [
            format!("\"{deep}\""),
            format!("'\\'{deep}'"),
            format!("// don't {deep}\n"),
            format!("/* it's * {deep} **/"),
        ] {
            assert!(too_deep(&quoted).is_none(), "{quoted}");
        }
        for real in [
            format!("// don't\n{deep}"),
            format!("/* ' */{deep}"),
            format!("'a'{deep}"),
            format!("'a\n{deep}"),
        ] {
            assert!(too_deep(&real).is_some(), "{real}");
        }
    }
}
