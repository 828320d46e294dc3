//! The connection of a holder.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::holder::DONE;

/// How long a holder may take to do what it is told.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest line that it may write, in bytes.
const LONGEST_LINE: u64 = 4 << 10;

/// Does what it is told, in lines.
pub(super) struct Holder(BufReader<UnixStream>);

impl Holder {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// What comes of telling it that; why not, if it has not done it.
    pub(super) async fn ask(&mut self, word: &str) -> anyhow::Result<Result<(), String>> {
        let word = format!("{word}\n");
        self.0.get_mut().write_all(word.as_bytes()).await?;
        Ok(match self.line().await?.as_str() {
            DONE => Ok(()),
            why => Err(why.to_owned()),
        })
    }

    pub(super) async fn line(&mut self) -> anyhow::Result<String> {
        let line = timeout(DEADLINE, self.read_line()).await;
        line.context("it does not answer")?
    }

    async fn read_line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let mut limited = (&mut self.0).take(LONGEST_LINE);
        limited.read_line(&mut line).await?;
        ensure!(!line.is_empty(), "it has hung up");
        let line = line.strip_suffix('\n').context("its line has no end")?;
        Ok(line.to_owned())
    }

    /// Resolves when it is gone, or says something unasked.
    pub(super) async fn gone(&mut self) -> anyhow::Error {
        match self.0.fill_buf().await {
            Ok([]) => anyhow::anyhow!("it has hung up"),
            Ok(_) => anyhow::anyhow!("it says something unasked"),
            Err(error) => error.into(),
        }
    }
}
