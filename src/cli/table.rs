//! Columns for a terminal.

use crate::telemetry::plain;

/// One column's heading and whether its values stand at the right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column(pub(super) &'static str, pub(super) Side);

/// Where a column's values stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Lines of equally wide columns. Every cell is made inert first: names come from peers.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>]) -> String {
    Lines::new(columns.iter().map(|column| (*column, 0)).collect()).write(rows)
}

/// A table that goes on: later lines stand under the first ones, unless they are wider.
#[derive(Debug)]
pub(super) struct Lines {
    columns: Vec<(Column, usize)>,
    headed: bool,
}

impl Lines {
    /// Columns, each with its least width.
    pub(super) fn new(columns: Vec<(Column, usize)>) -> Lines {
        Lines { columns, headed: false }
    }

    /// The next lines, after the heading if it has not been written.
    pub(super) fn write(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|c| plain(c).into_owned()).collect()).collect();
        for (at, (Column(name, _), width)) in self.columns.iter_mut().enumerate() {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|c| c.chars().count());
            *width = cells.chain([*width, name.chars().count()]).max().unwrap_or(0);
        }
        let mut out = String::new();
        if !std::mem::replace(&mut self.headed, true) {
            self.line(&mut out, self.columns.iter().map(|(Column(name, _), _)| *name));
        }
        for row in &rows {
            self.line(&mut out, row.iter().map(String::as_str));
        }
        out
    }

    fn line<'a>(&self, out: &mut String, cells: impl Iterator<Item = &'a str>) {
        let mut line = String::new();
        for (cell, (Column(_, side), width)) in cells.zip(&self.columns) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&match side {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_are_inert() {
        let rows = [
            vec!["größe".to_owned(), "4".to_owned()],
            vec!["\u{1b}[2J".to_owned(), "121".to_owned()],
        ];
        let text = table(&[Column("NODE", Side::Left), Column("N", Side::Right)], &rows);
        assert_eq!(text, "NODE         N\ngröße        4\n\\u{1b}[2J  121\n");
    }

    #[test]
    fn what_comes_later_stands_under_what_came_first() {
        let mut lines =
            Lines::new(vec![(Column("NODE", Side::Left), 6), (Column("N", Side::Right), 0)]);
        let row = |name: &str, n: &str| vec![vec![name.to_owned(), n.to_owned()]];
        assert_eq!(lines.write(&row("gpu", "1")), "NODE    N\ngpu     1\n");
        assert_eq!(lines.write(&[]), "");
        assert_eq!(lines.write(&row("a-longer-one", "2")), "a-longer-one  2\n");
        assert_eq!(lines.write(&row("gpu", "3")), "gpu           3\n");
    }
}
