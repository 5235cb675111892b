//! What was asked for: a verb's options and its word.

use crate::run::Failed;

/// The options that verbs take, and the one word that filters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// Less of it, in a fraction of the time.
    pub(crate) quick: bool,
    /// The interpreter to use, instead of what is found.
    pub(crate) python: Option<String>,
    /// The one start method to use.
    pub(crate) method: Option<String>,
    /// A part of the names to run.
    pub(crate) word: Option<String>,
}

/// The options that each verb takes; `WORD` stands for the filter.
const TAKEN: [(&str, &[&str]); 11] = [
    ("demo", &["--quick", "--python"]),
    ("test", &["WORD"]),
    ("crash", &[]),
    ("check", &[]),
    ("ci", &[]),
    ("bench", &["--quick", "WORD"]),
    ("conformance", &["--python", "--method", "WORD"]),
    ("interop", &[]),
    ("planted", &["WORD"]),
    ("build-python", &[]),
    ("wheel", &["--python"]),
];

impl Arguments {
    /// Reads the words after `verb`. An option that the verb doesn't take is an error; an unknown verb is left to the
    /// caller.
    pub(crate) fn parse(
        verb: &str,
        mut words: impl Iterator<Item = String>,
    ) -> Result<Self, Failed> {
        let mut parsed = Self::default();
        let Some((_, taken)) = TAKEN.iter().find(|(name, _)| *name == verb) else {
            return Ok(parsed);
        };
        while let Some(word) = words.next() {
            let option = if word.starts_with("--") {
                word.as_str()
            } else {
                "WORD"
            };
            if !taken.contains(&option) {
                return Err(Failed::new(format!("{verb} doesn't take {word}")));
            }
            match option {
                "--quick" => parsed.quick = true,
                "--python" => parsed.python = Some(value(&word, &mut words)?),
                "--method" => parsed.method = Some(value(&word, &mut words)?),
                _ if parsed.word.is_none() => parsed.word = Some(word),
                _ => return Err(Failed::new(format!("one word, not also {word}"))),
            }
        }
        Ok(parsed)
    }
}

fn value(option: &str, words: &mut impl Iterator<Item = String>) -> Result<String, Failed> {
    words
        .next()
        .ok_or_else(|| Failed::new(format!("{option} needs a value")))
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    fn parse(line: &str) -> Result<Arguments, String> {
        let mut words = line.split_whitespace().map(str::to_owned);
        let verb = words.next().unwrap();
        Arguments::parse(&verb, words).map_err(|failed| failed.0)
    }

    #[test]
    fn options_and_the_word_come_in_any_order() {
        let expected = Arguments {
            python: Some("python3.12".into()),
            method: Some("spawn".into()),
            word: Some("Queue".into()),
            quick: false,
        };
        let line = "conformance --python python3.12 Queue --method spawn";
        assert_eq!(parse(line), Ok(expected));
    }

    #[test]
    fn what_a_verb_does_not_take_is_refused() {
        assert!(parse("test --quick").is_err());
        assert!(parse("check Queue").is_err());
        assert!(parse("test one two").is_err());
        assert!(parse("demo --python").is_err());
    }
}
