//! A connection over which nothing goes for a while, and which works afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::http::{self, Reply};
use crate::target::{Target, connect};

pub(crate) async fn run(target: &Target, silence: Duration) -> Result<Value> {
    let addresses = target.addresses().await?;
    let mut streams = Vec::new();
    for address in &addresses {
        let mut stream = connect(*address).await?;
        ask(&mut stream).await.context("before the silence")?;
        streams.push(stream);
    }
    tokio::time::sleep(silence).await;
    for stream in &mut streams {
        ask(stream).await.context("after the silence")?;
    }
    Ok(json!({"connections": streams.len(), "seconds": silence.as_secs()}))
}

/// One request on a connection that stays.
async fn ask(stream: &mut TcpStream) -> Result<()> {
    http::get(stream, "/idle", true).await?;
    let mut reply = Reply::new(stream);
    let mut left = reply.length().await?;
    while left > 0 {
        let piece = reply.some(left as usize).await?;
        ensure!(!piece.is_empty(), "the connection ended");
        left -= piece.len() as u64;
    }
    Ok(())
}
