//! The streaming half of the main job: every line of every Python file of a folder goes through a queue, one message
//! each, to processes that count words.
//!
//!     cargo run --release -p procession --example census -- FOLDER [--workers N] [--json FILE]
//!
//! The twin of `python/examples/census.py`: over the same folder both print the same digest of the counts.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints its results, and says what it leaves out"
)]

use procession::{Process, Queue};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::error::Error;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Tells a consumer that no line will follow. No line holds one.
const END: &str = "\n";
/// Folders that are left out: what is compiled, and what is installed beside a standard library.
const LEFT_OUT: [&str; 2] = ["__pycache__", "site-packages"];
/// Files between two lines of progress.
const PROGRESS: usize = 100;

type Counts = HashMap<String, u64>;

struct Options {
    folder: PathBuf,
    json: Option<PathBuf>,
    workers: usize,
}

/// What was found.
struct Census {
    files: usize,
    lines: u64,
    counts: Counts,
    seconds: f64,
}

fn main() -> ExitCode {
    procession::init();
    let options = match options(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => return usage(&message),
    };
    let files = match files(&options.folder) {
        Ok(files) if files.is_empty() => {
            return usage(&format!(
                "{}: no Python files there",
                options.folder.display()
            ));
        }
        Ok(files) => files,
        Err(error) => return usage(&format!("{}: {error}", options.folder.display())),
    };
    match census(&options, &read(&files)).and_then(|census| report(&options, &census)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("census: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("census: {message}");
    ExitCode::from(2)
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    let (mut folder, mut json, mut workers) = (None, None, workers);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match &*argument {
            "--json" => json = Some(PathBuf::from(value()?)),
            "--workers" => {
                let text = value()?;
                let count = text.parse().ok().filter(|count| *count > 0);
                workers = count.ok_or(format!("--workers {text}: a positive number is needed"))?;
            }
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            _ if folder.is_none() => folder = Some(PathBuf::from(argument)),
            _ => return Err(format!("more than one folder: {argument}")),
        }
    }
    let folder = folder.ok_or("a folder is needed: census FOLDER [--workers N] [--json FILE]")?;
    Ok(Options {
        folder,
        json,
        workers,
    })
}

/// The Python files below a folder, sorted by their path. Links to folders aren't followed.
fn files(top: &Path) -> std::io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![top.to_owned()]);
    while let Some(folder) = folders.pop() {
        match list(&folder, &mut files, &mut folders) {
            Err(error) if folder == top => return Err(error),
            Err(error) => left_out(&folder, &error.to_string()),
            Ok(()) => {}
        }
    }
    files.sort();
    Ok(files)
}

fn list(
    folder: &Path,
    files: &mut Vec<PathBuf>,
    folders: &mut Vec<PathBuf>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // A pipe or a device might never end. A link that leads nowhere is for the reader to report.
        let may_be_read = || std::fs::metadata(&path).map_or(true, |it| it.is_file());
        if entry.file_type()?.is_dir() {
            if !LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
                folders.push(path);
            }
        } else if path.extension().is_some_and(|it| it == "py") && may_be_read() {
            files.push(path);
        }
    }
    Ok(())
}

fn left_out(path: &Path, why: &str) {
    eprintln!("census: {}: left out: {why}", path.display());
}

/// What the files hold; those that can't be read, or aren't UTF-8, are left out.
fn read(files: &[PathBuf]) -> Vec<String> {
    let read = |path: &PathBuf| match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => Some(text),
        Ok(Err(error)) => {
            left_out(path, &format!("not UTF-8: {}", error.utf8_error()));
            None
        }
        Err(error) => {
            left_out(path, &error.to_string());
            None
        }
    };
    files.iter().filter_map(read).collect()
}

/// Streams the files' lines to the consumers, and adds up what they counted.
fn census(options: &Options, files: &[String]) -> Result<Census, Box<dyn Error>> {
    let begin = Instant::now();
    let queue = Queue::new()?;
    let consumers = (0..options.workers)
        .map(|_| Process::builder().daemon(true).spawn(count, queue.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut lines = 0;
    for (done, text) in (1..).zip(files) {
        lines += put_lines(&queue, text)?;
        progress(done, files.len());
    }
    for _ in &consumers {
        queue.put(&END.to_owned())?;
    }
    let mut counts = Counts::new();
    for consumer in consumers {
        for (word, count) in consumer.join()? {
            *counts.entry(word).or_default() += count;
        }
    }
    Ok(Census {
        files: files.len(),
        lines,
        counts,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Puts every line, one message each, and says how many there were.
fn put_lines(queue: &Queue<String>, text: &str) -> procession::Result<u64> {
    let mut lines = 0;
    // One string for all lines of a file: a put copies it.
    let mut message = String::new();
    for line in text.split_terminator('\n') {
        message.clear();
        message.push_str(line);
        queue.put(&message)?;
        lines += 1;
    }
    Ok(lines)
}

/// What a consumer runs: counts the words of lines until the end.
///
/// # Panics
/// When the queue fails, which its parent is told.
fn count(queue: Queue<String>) -> Counts {
    let mut counts = Counts::new();
    loop {
        let line = queue.get().expect("the queue has lines until the end");
        if line == END {
            return counts;
        }
        for word in words(&line) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => _ = counts.insert(word.to_owned(), 1),
            }
        }
    }
}

/// The longest runs of ASCII letters, digits and underscores.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let pieces = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    pieces.filter(|word| !word.is_empty())
}

/// The digest of "WORD COUNT" of every word, a line each, sorted by bytes.
fn digest(counts: &Counts) -> String {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    for (word, count) in sorted {
        hash.update(format!("{word} {count}\n"));
    }
    hash.finalize()
        .iter()
        .fold(String::new(), |mut text, byte| {
            // A string takes whatever is written.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn report(options: &Options, census: &Census) -> Result<(), Box<dyn Error>> {
    let Census {
        files,
        lines,
        seconds,
        ..
    } = census;
    let words: u64 = census.counts.values().sum();
    let digest = digest(&census.counts);
    let mut used: Vec<_> = census.counts.iter().collect();
    used.sort_unstable_by(|(word, count), (other, more)| more.cmp(count).then(word.cmp(other)));
    let rows = [
        ("files", files.to_string()),
        ("lines", lines.to_string()),
        ("words", words.to_string()),
        ("distinct words", census.counts.len().to_string()),
        ("seconds", format!("{seconds:.3}")),
    ];
    for (name, value) in rows {
        println!("{name:<16}{value:>12}");
    }
    println!("most used words");
    for (word, count) in used.iter().take(10) {
        println!("  {word:<14}{count:>12}");
    }
    println!("words digest    {digest}");
    if let Some(file) = &options.json {
        let json = format!(
            "{{\"words_digest\": \"{digest}\", \"lines\": {lines}, \"files\": {files}, \
             \"words\": {words}, \"seconds\": {{\"stream\": {seconds:.3}}}}}\n"
        );
        std::fs::write(file, json).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

/// Shows how far it is, on a terminal.
fn progress(done: usize, all: usize) {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() && (done.is_multiple_of(PROGRESS) || done == all) {
        let end = if done == all { "\n" } else { "" };
        // Who can't be shown progress does without.
        let _ = write!(terminal, "\r{done} of {all} files{end}");
    }
}
