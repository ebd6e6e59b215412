//! Closed-loop clients on one thread: each keeps one connection, sends the same bytes again as soon as it has its
//! answer, and looks at no more of the answer than it must. They share the machine's cores with what they measure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http::Head;

/// What a load came to.
pub struct Load {
    /// Answers in all, those of the warm-up too.
    pub answers: u64,
    /// Answers per second, after the warm-up.
    pub per_second: f64,
}

/// Has `clients` send `request` for `warm_up` and then `span`. Every answer must have `status`.
pub fn run(
    address: SocketAddr,
    clients: usize,
    request: &[u8],
    status: u16,
    warm_up: Duration,
    span: Duration,
) -> Load {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let from = Instant::now() + warm_up;
    let plan = Arc::new(Plan { address, request: request.to_vec(), status, from, until: from + span });
    let (mut answers, mut counted) = (0, 0);
    runtime.block_on(async {
        let clients: Vec<_> = (0..clients).map(|_| tokio::spawn(client(Arc::clone(&plan)))).collect();
        for client in clients {
            let (all, in_span) = client.await.unwrap();
            answers += all;
            counted += in_span;
        }
    });
    Load { answers, per_second: counted as f64 / span.as_secs_f64() }
}

struct Plan {
    address: SocketAddr,
    request: Vec<u8>,
    status: u16,
    from: Instant,
    until: Instant,
}

async fn client(plan: Arc<Plan>) -> (u64, u64) {
    let mut stream = TcpStream::connect(plan.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 16 * 1024];
    let (mut answers, mut in_span) = (0, 0);
    while Instant::now() < plan.until {
        stream.write_all(&plan.request).await.unwrap();
        let mut filled = 0;
        loop {
            let n = stream.read(&mut buffer[filled..]).await.unwrap();
            assert!(n > 0, "the server closed the connection");
            filled += n;
            if let Some(head) = Head::of(&buffer[..filled])
                && filled >= head.head + head.length
            {
                assert_eq!(head.status, plan.status, "{}", String::from_utf8_lossy(&buffer[..filled]));
                break;
            }
        }
        answers += 1;
        let now = Instant::now();
        in_span += u64::from(now >= plan.from && now < plan.until);
    }
    (answers, in_span)
}
