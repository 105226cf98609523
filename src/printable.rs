//! Text that others chose, on its way to a terminal.
//!
//! Names of images, pools, members and clients are anything their owners like, control characters too: raw, they
//! repaint what a terminal shows. What people read goes through here: the cells of tables, the text of answers and
//! errors, lines of the log, the trail, and the status that the service manager shows. JSON has its own escapes.

use std::borrow::Cow;
use std::fmt::Write as _;

/// With each control character, and each that changes the direction of what follows, as an escape: `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Like [`printable`] for text of several lines.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n')
}

fn escaped(text: &str, passes: impl Fn(char) -> bool) -> Cow<'_, str> {
    let bad = |c: char| is_bad(c) && !passes(c);
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if bad(c) {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "{}", c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// C0, DEL and C1; line and paragraph separators; marks, embeddings, overrides and isolates of direction; the mark of
/// byte order.
fn is_bad(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_the_cursor_or_the_direction_is_escaped_and_nothing_else() {
        assert_eq!(printable("büro r&d 日本"), "büro r&d 日本");
        assert_eq!(printable("a\u{1b}[2Jb\rc\nd\te"), r"a\u{1b}[2Jb\u{d}c\u{a}d\u{9}e");
        assert_eq!(printable("\u{9b}31m\u{7f}\u{202e}\u{2066}x"), r"\u{9b}31m\u{7f}\u{202e}\u{2066}x");
        assert_eq!(lines("a\nb\u{1b}c"), "a\nb\\u{1b}c");
    }

    #[test]
    fn text_that_is_fine_is_not_copied() {
        assert!(matches!(printable("fine"), Cow::Borrowed(_)));
    }
}
