//! `status`: queries the running process.

use protocol::exit::ExitCode;
use protocol::status::{SidecarStatus, TargetState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::args::StatusArguments;
use crate::failure::Failure;

/// Limit on the answer, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// Shows the state of each database. Exits with 12 when a database is not replicated, or a target
/// does not accept it.
///
/// # Errors
///
/// No process listens at the address, or a process of another program does.
pub async fn run(arguments: StatusArguments) -> Result<ExitCode, Failure> {
    let body = fetch(&arguments.addr).await.map_err(|error| {
        let message = format!(
            "no replicate process answers at {}: {error}",
            arguments.addr
        );
        Failure::message(ExitCode::Unreachable, message)
    })?;
    let status: SidecarStatus = serde_json::from_str(&body).map_err(|error| {
        let message = format!("{} is not a replicate process: {error}", arguments.addr);
        Failure::message(ExitCode::Unreachable, message)
    })?;
    if arguments.json {
        println!("{body}");
    } else {
        for database in &status.databases {
            println!(
                "{} {:?} {}",
                database.path, database.state, database.message
            );
            for target in &database.targets {
                let txid = target
                    .position
                    .as_ref()
                    .map_or("none", |at| at.txid.as_str());
                println!(
                    "  {} {:?} TXID {txid} lag {} ms, backlog {} bytes {}",
                    target.name, target.state, target.lag_ms, target.backlog_bytes, target.message
                );
            }
        }
    }
    let healthy = status.databases.iter().all(|database| {
        let targets = &database.targets;
        database.state.is_healthy() && targets.iter().all(|it| it.state == TargetState::Ok)
    });
    Ok(if healthy {
        ExitCode::Done
    } else {
        ExitCode::Stale
    })
}

async fn fetch(addr: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET /status HTTP/1.0\r\nHost: {addr}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| anyhow::anyhow!("the answer is not HTTP"))?;
    anyhow::ensure!(
        head.contains(" 200 "),
        "{}",
        head.lines().next().unwrap_or_default()
    );
    Ok(body.to_owned())
}
