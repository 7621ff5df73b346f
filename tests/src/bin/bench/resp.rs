//! As much of redis' protocol as is needed.

/// A command in the form that servers take.
pub fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend(*word);
        out.extend(b"\r\n");
    }
}

/// The length of the reply at the start of `bytes`, once it is whole: a line, or `$N` with data.
pub fn reply_len(bytes: &[u8]) -> Option<usize> {
    let line = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    if bytes[0] != b'$' {
        return Some(line);
    }
    let number = std::str::from_utf8(&bytes[1..line]).ok()?.trim().parse::<i64>().ok()?;
    let len = usize::try_from(number).map_or(line, |data| line + data + 2);
    (bytes.len() >= len).then_some(len)
}

/// What is in a whole reply: the line without its first letter, or the data.
pub fn content(reply: &[u8]) -> &[u8] {
    let line = reply.iter().position(|&byte| byte == b'\n').map_or(reply.len(), |at| at + 1);
    let body = if reply.starts_with(b"$") { &reply[line..] } else { &reply[1..] };
    body.strip_suffix(b"\r\n").unwrap_or(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_cut_where_they_end() {
        assert_eq!(reply_len(b"+PONG\r\n+"), Some(7));
        assert_eq!(reply_len(b"$3\r\nabc\r"), None);
        assert_eq!(reply_len(b"$3\r\nabc\r\n+OK"), Some(9));
        assert_eq!(reply_len(b"$-1\r\n"), Some(5));
        assert_eq!(content(b"$3\r\nabc\r\n"), b"abc");
        assert_eq!(content(b"+OK\r\n"), b"OK");
    }
}
