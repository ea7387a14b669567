//! Columns for a terminal.

use crate::telemetry::plain;

/// One column's heading and whether its values stand at the right.
pub(super) struct Column(pub(super) &'static str, pub(super) Side);

/// Where a column's values stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Lines of equally wide columns. Every cell is made inert first: names come from peers.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = std::iter::once(columns.iter().map(|c| c.0.to_owned()).collect())
        .chain(rows.iter().map(|row| row.iter().map(|c| plain(c).into_owned()).collect()))
        .collect();
    let width = |at: usize| {
        rows.iter().filter_map(|r| r.get(at)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for ((cell, Column(_, side)), width) in row.iter().zip(columns).zip(&widths) {
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
    out
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
}
