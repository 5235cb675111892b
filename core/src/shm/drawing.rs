//! Whether `docs/shm.md` draws a struct as it is: a test for each, made by [`shared`](super::view::shared).

/// A field's name, offset and size.
pub(crate) type Field = (&'static str, usize, usize);

/// Compares a struct with its table in `docs/shm.md`; fields whose names begin with `_` aren't drawn.
pub(crate) fn compare(name: &str, bytes: usize, fields: &[Field]) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/shm.md");
    let text = std::fs::read_to_string(path).unwrap();
    let title = format!("### `{name}`: {bytes} bytes");
    let mut lines = text.lines().skip_while(|line| *line != title);
    assert!(lines.next().is_some(), "docs/shm.md has no {title:?}");
    let drawn: Vec<String> = lines
        .take_while(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let [offset, size, field] = [cells.next()?, cells.next()?, cells.next()?];
            let field = field.strip_prefix('`')?.strip_suffix('`')?;
            Some(format!("{offset} {size} {field}"))
        })
        .collect();
    let real: Vec<String> = fields
        .iter()
        .filter(|(field, ..)| !field.starts_with('_'))
        .map(|(field, offset, size)| format!("{offset} {size} {field}"))
        .collect();
    assert_eq!(drawn, real, "{name} in docs/shm.md");
}
