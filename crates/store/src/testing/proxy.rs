//! A TCP proxy that cuts connections, to test how a store handles broken answers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How the proxy cuts the answers of the next connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Forwards this many bytes of answers and then closes the connection. The store has carried
    /// out the request.
    After(u64),
    /// Forwards this many bytes of answers, then nothing more.
    Stall(u64),
    /// Answers each connection with these bytes, without contacting the store.
    Instead(&'static str),
    /// Accepts connections and never answers.
    Silence,
}

/// A proxy on this machine. Stops when dropped.
pub struct Proxy {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    accept: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of `HOST:PORT`. The first `times` connections are cut, later ones
    /// pass.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(upstream: String, cut: Cut, times: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let connections = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&connections);
        let accept = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let cut = (counter.fetch_add(1, Ordering::SeqCst) < times).then_some(cut);
                open.spawn(serve(client, upstream.clone(), cut));
            }
        });
        Self {
            address,
            connections,
            accept,
        }
    }

    /// Returns the endpoint that replaces the store's.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Errors end the connection. A proxy can do nothing else about them.
async fn serve(mut client: TcpStream, upstream: String, cut: Option<Cut>) -> std::io::Result<()> {
    match cut {
        Some(Cut::Silence) => futures::future::pending().await,
        Some(Cut::Instead(answer)) => {
            let mut request = [0; 16 * 1024];
            let _ = client.read(&mut request).await?;
            client.write_all(answer.as_bytes()).await?;
            client.shutdown().await
        }
        Some(Cut::After(bytes)) => forward(client, upstream, bytes, End::Close).await,
        Some(Cut::Stall(bytes)) => forward(client, upstream, bytes, End::Stay).await,
        None => forward(client, upstream, u64::MAX, End::Close).await,
    }
}

/// The end of a connection after the last forwarded byte.
#[derive(PartialEq, Eq)]
enum End {
    Close,
    Stay,
}

async fn forward(
    client: TcpStream,
    upstream: String,
    answer_bytes: u64,
    end: End,
) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (from_store, mut to_store) = TcpStream::connect(upstream).await?.into_split();
    let mut limited = from_store.take(answer_bytes);
    tokio::select! {
        // Dropping all four halves closes both connections.
        answers = async {
            tokio::io::copy(&mut limited, &mut to_client).await?;
            if end == End::Stay {
                futures::future::pending::<()>().await;
            }
            limited.into_inner().read(&mut [0]).await.map(drop)
        } => answers,
        never = async {
            tokio::io::copy(&mut from_client, &mut to_store).await?;
            futures::future::pending::<std::io::Result<()>>().await
        } => never,
    }
}
