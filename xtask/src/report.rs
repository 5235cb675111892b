//! What the demo's programs write down: a flat reading of their small JSON files.

/// The value of a key, wherever in the document it is, as it stands there; a string without its quotes.
///
/// Enough for documents whose keys are unique and whose strings have nothing to escape, which the examples' are.
pub(crate) fn value<'a>(document: &'a str, key: &str) -> Option<&'a str> {
    let (_, after) = document.split_once(&format!("\"{key}\""))?;
    let after = after.trim_start().strip_prefix(':')?.trim_start();
    match after.strip_prefix('"') {
        Some(text) => Some(text.split_once('"')?.0),
        None => {
            let end = after.find([',', '}', ']', '\n']).unwrap_or(after.len());
            Some(after[..end].trim_end())
        }
    }
}

/// A key's number.
pub(crate) fn number(document: &str, key: &str) -> Option<f64> {
    value(document, key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{number, value};

    const DOCUMENT: &str = r#"{
        "digest": "ab12", "words_digest":"cd34", "files": 3,
        "seconds": {"parse": 1.5, "total": 2}
    }"#;

    #[test]
    fn keys_are_whole_words() {
        assert_eq!(value(DOCUMENT, "digest"), Some("ab12"));
        assert_eq!(value(DOCUMENT, "words_digest"), Some("cd34"));
        assert_eq!(value(DOCUMENT, "words"), None);
    }

    #[test]
    fn numbers_end_where_they_end() {
        assert_eq!(number(DOCUMENT, "files"), Some(3.0));
        assert_eq!(number(DOCUMENT, "parse"), Some(1.5));
        assert_eq!(number(DOCUMENT, "total"), Some(2.0));
        assert_eq!(number(DOCUMENT, "digest"), None);
    }
}
