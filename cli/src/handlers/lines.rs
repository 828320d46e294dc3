//! The lines of several commands, each with whose it is.

use std::io::Write;
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How many lines may wait to be printed; then commands wait.
const LINES: usize = 64;

/// What is longer is printed in several lines.
const LONGEST: u64 = 64 << 10;

/// How long what is left may take once the commands have ended; what they have started may
/// go on, and has their output.
const REST: Duration = Duration::from_millis(500);

/// Where a line goes.
#[derive(Clone, Copy)]
enum Stream {
    Output,
    Error,
}

type Line = (Stream, Vec<u8>);

/// Prints the lines of commands as they come.
pub(super) struct Printer {
    /// How wide names are.
    width: usize,
    line_tx: mpsc::Sender<Line>,
    readers: JoinSet<()>,
    /// Tells that all is printed.
    printed: oneshot::Receiver<()>,
}

impl Printer {
    pub(super) fn start(width: usize) -> Self {
        let (line_tx, line_rx) = mpsc::channel(LINES);
        let (printed_tx, printed) = oneshot::channel();
        // Whoever reads may be slow, and signals are not to wait for that.
        thread::spawn(move || {
            print(line_rx);
            drop(printed_tx);
        });
        Self {
            width,
            line_tx,
            readers: JoinSet::new(),
            printed,
        }
    }

    /// Prints what a command says, under a name.
    pub(super) fn follow(&mut self, name: &str, child: &mut Child) {
        let prefix = format!("{name:width$} | ", width = self.width);
        let (output, error) = (child.stdout.take(), child.stderr.take());
        if let Some(output) = output {
            let read = read(output, prefix.clone(), Stream::Output, self.line_tx.clone());
            self.readers.spawn(read);
        }
        if let Some(error) = error {
            let read = read(error, prefix, Stream::Error, self.line_tx.clone());
            self.readers.spawn(read);
        }
    }

    /// Prints what is left.
    pub(super) async fn finish(mut self) {
        let all = async { while self.readers.join_next().await.is_some() {} };
        // Then they are read no more.
        let _ = timeout(REST, all).await;
        self.readers.shutdown().await;
        drop(self.line_tx);
        let _ = timeout(REST, self.printed).await;
    }
}

async fn read(
    from: impl AsyncRead + Unpin,
    prefix: String,
    stream: Stream,
    line_tx: mpsc::Sender<Line>,
) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = prefix.clone().into_bytes();
        let mut limited = (&mut from).take(LONGEST);
        match limited.read_until(b'\n', &mut line).await {
            // It has ended.
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        if line_tx.send((stream, line)).await.is_err() {
            return;
        }
    }
}

/// Prints lines; those that nobody reads are lost.
fn print(mut line_rx: mpsc::Receiver<Line>) {
    while let Some((stream, line)) = line_rx.blocking_recv() {
        let _ = match stream {
            Stream::Output => write(std::io::stdout().lock(), &line),
            Stream::Error => write(std::io::stderr().lock(), &line),
        };
    }
}

fn write(mut to: impl Write, line: &[u8]) -> std::io::Result<()> {
    to.write_all(line)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_line_begins_with_a_name() {
        let (line_tx, mut line_rx) = mpsc::channel(LINES);
        let text: &[u8] = b"one\n\ntw\xff\nthree";
        read(text, "web | ".into(), Stream::Output, line_tx).await;
        let mut lines = Vec::new();
        while let Some((_, line)) = line_rx.recv().await {
            lines.push(line);
        }
        let expected: [&[u8]; 4] = [
            b"web | one\n",
            b"web | \n",
            b"web | tw\xff\n",
            b"web | three\n",
        ];
        assert_eq!(lines, expected);
    }
}
