//! Text from a stream, made fit for a terminal.

/// The text with control characters, and bytes that are no text, written as escapes: a stream must not be able to
/// move the cursor of who looks at it.
pub fn plain(bytes: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    for chunk in bytes.as_ref().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || is_direction(c) { text.extend(c.escape_unicode()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Characters that make a terminal show text in another order than it has.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn no_control_character_gets_through() {
        assert_eq!(plain(b"a\x1b[2Jb\xffc\n"), "a\\u{1b}[2Jb\\xffc\\u{a}");
        assert_eq!(plain("größe"), "größe");
        assert_eq!(plain("\u{202e}"), "\\u{202e}");
    }
}
