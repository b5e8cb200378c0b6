//! A web server that records requests.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use super::PATIENCE;

/// The server; it ends with the test's process.
pub struct Monitor {
    address: String,
    heard: Receiver<String>,
}

impl Monitor {
    /// Starts a server that calls `look` at each request, and gives each the same answer.
    pub fn start(status: &'static str, look: impl Fn() + Send + 'static) -> Monitor {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
        let address = listener.local_addr().expect("a bound socket has one");
        let (sender, heard) = channel();
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                look();
                let mut line = String::new();
                let reader = client.try_clone().expect("one more handle");
                BufReader::new(reader)
                    .read_line(&mut line)
                    .expect("read a request");
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                client.write_all(answer.as_bytes()).expect("answer");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Monitor {
            address: address.to_string(),
            heard,
        }
    }

    /// Its URL, with a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Waits for the next request, and returns its first line.
    pub fn hear(&self) -> String {
        self.heard.recv_timeout(PATIENCE).expect("a request")
    }
}
