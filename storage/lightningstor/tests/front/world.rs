//! A simulated node with several users, and a client that signs what it sends, or something else.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::rc::Rc;

use engine::EngineConfig;
use engine::net::{Addr, TcpStream};
use engine::sim::{NodeId, Sim};
use lightningstor::buckets::Buckets;
use lightningstor::http::{HttpConfig, Limits, User, Users};
use lightningstor::node::{LightningStorNode, NodeConfig};
use lightningstor::store::{Images, StoreConfig};
use s3_wire::chunked::{Encoder, Framing};
use s3_wire::request::HostConfig;
use s3_wire::sigv4::{RegionPolicy, RequestToSign, Signer, sign_request};

pub const SHARDS: usize = 2;
const PORT: u16 = 9000;

/// Access key and secret.
pub type Keys = (&'static str, &'static str);
pub const ROOT: Keys = ("ROOTKEY", "rootsecret");
pub const ANN: Keys = ("ANNKEY", "annsecret");
/// The other key of the same user.
pub const ANN_TOO: Keys = ("ANNKEY2", "annsecret2");
pub const BOB: Keys = ("BOBKEY", "bobsecret");

pub struct World {
    pub sim: Sim,
    pub server: NodeId,
    pub client: NodeId,
    pub limits: Limits,
    pub store: StoreConfig,
    /// The name of the user whose id is `ann-id`.
    pub ann_name: &'static str,
    node: RefCell<Option<ManuallyDrop<LightningStorNode>>>,
}

fn engine_config() -> EngineConfig {
    EngineConfig {
        pool_bytes: 16 << 20,
        ..EngineConfig::unpinned(SHARDS)
    }
}

/// A world whose server has no power yet.
pub fn world(seed: u64) -> World {
    let sim = Sim::new(seed);
    let (server, client) = (sim.node("server"), sim.node("client"));
    sim.start(client, engine_config()).unwrap();
    World {
        sim,
        server,
        client,
        limits: Limits::default(),
        store: store_config(),
        ann_name: "Ann",
        node: RefCell::default(),
    }
}

/// A world that serves.
pub fn serving(seed: u64) -> World {
    let world = world(seed);
    world.start();
    world
}

fn store_config() -> StoreConfig {
    let mut config = StoreConfig {
        data_grow_bytes: 1 << 20,
        part_bytes_min: 1000,
        ..StoreConfig::default()
    };
    config.log.segment_bytes = 2 << 20;
    config
}

impl World {
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.server.ip().into(), PORT)
    }

    /// Gives the server power and waits until it serves.
    pub fn start(&self) {
        let mut config = engine_config();
        let groups = LightningStorNode::declare(&mut config);
        let handle = self.sim.start(self.server, config).unwrap();
        let user = |id: &str, name: &str, keys: Keys| User {
            id: id.into(),
            name: name.into(),
            access_key: keys.0.into(),
            secret_key: keys.1.into(),
        };
        let users = vec![
            user("root", "root", ROOT),
            user("ann-id", self.ann_name, ANN),
            user("ann-id", self.ann_name, ANN_TOO),
            user("bob", "bob", BOB),
        ];
        let node = NodeConfig {
            data_dir: "/data".into(),
            partitions: 3,
            http: HttpConfig {
                listen: self.addr(),
                region: "us-east-1".into(),
                region_policy: RegionPolicy::Any,
                hosts: HostConfig::default(),
                users: Users::new(users).unwrap(),
                limits: self.limits,
            },
            store: self.store.clone(),
        };
        let node = self.sim.run(self.server, 0, async move {
            LightningStorNode::start(&handle, groups, node)
                .await
                .unwrap()
        });
        // It serves for as long as the engine runs.
        *self.node.borrow_mut() = Some(ManuallyDrop::new(node));
    }

    pub fn images(&self) -> Images {
        self.node.borrow().as_ref().unwrap().images().clone()
    }

    pub fn buckets(&self) -> Buckets {
        self.node.borrow().as_ref().unwrap().buckets().clone()
    }

    /// The sum of a counter over the shards.
    pub fn metric(&self, name: &str) -> u64 {
        let held = self.node.take().unwrap();
        let held = Rc::new(held);
        let asked = Rc::clone(&held);
        let text = self
            .sim
            .run(self.server, 0, async move { asked.prometheus().await });
        *self.node.borrow_mut() = Rc::into_inner(held);
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    pub fn on_client<R: 'static>(&self, future: impl Future<Output = R> + 'static) -> R {
        self.sim.run(self.client, 0, future)
    }

    /// Asks on a connection of its own.
    pub fn ask(&self, ask: Ask) -> Answer {
        let addr = self.addr();
        self.on_client(async move { ask.send(addr).await.unwrap() })
    }

    /// Sends bytes on a connection of its own: every answer until the server closes it.
    pub fn answers_to(&self, make: impl FnOnce(SocketAddr) -> Vec<u8> + 'static) -> Vec<Answer> {
        let addr = self.addr();
        self.on_client(async move {
            let mut connection = Connection::open(addr).await;
            connection.send(make(addr)).await;
            // Nothing follows: the server has no more to wait for.
            connection.stream.shutdown_write().await.unwrap();
            let mut all = Vec::new();
            while let Some(answer) = connection.answer(false).await {
                all.push(answer);
            }
            all
        })
    }
}

/// How a body is signed.
#[derive(Clone, Debug)]
pub enum Payload {
    Unsigned,
    /// What the head says that the SHA-256 is.
    Sha256(String),
    SignedChunks,
    SignedChunksTrailer,
    UnsignedTrailer,
}

/// A request in the making.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub payload: Payload,
    pub trailers: Vec<(String, String)>,
    pub keys: Keys,
    /// How far the client's clock is ahead.
    pub skew_s: i64,
}

pub fn ask(method: &'static str, path: &str) -> Ask {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    Ask {
        method,
        path: path.into(),
        query: query.into(),
        headers: Vec::new(),
        body: Vec::new(),
        payload: Payload::Unsigned,
        trailers: Vec::new(),
        keys: ANN,
        skew_s: 0,
    }
}

impl Ask {
    pub fn by(self, keys: Keys) -> Ask {
        Ask { keys, ..self }
    }

    pub fn body(self, body: impl Into<Vec<u8>>) -> Ask {
        let body = body.into();
        Ask { body, ..self }
    }

    pub fn payload(self, payload: Payload) -> Ask {
        Ask { payload, ..self }
    }

    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn trailer(mut self, name: &str, value: &str) -> Ask {
        self.trailers.push((name.into(), value.into()));
        self.header("x-amz-trailer", name)
    }

    /// Head and body. The clock is that of the shard that it runs on.
    pub fn encode(&self, addr: SocketAddr) -> Vec<u8> {
        let mut headers = self.headers.clone();
        headers.push(("host".into(), addr.to_string()));
        if !matches!(self.payload, Payload::Unsigned | Payload::Sha256(_)) {
            let decoded = self.body.len().to_string();
            headers.push(("x-amz-decoded-content-length".into(), decoded));
            headers.push(("content-encoding".into(), "aws-chunked".into()));
        }
        let payload = match &self.payload {
            Payload::Unsigned => "UNSIGNED-PAYLOAD",
            Payload::Sha256(text) => text,
            Payload::SignedChunks => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            Payload::SignedChunksTrailer => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            Payload::UnsignedTrailer => "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        };
        let borrowed: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (&**n, &**v)).collect();
        let signer = Signer {
            access_key: self.keys.0,
            secret: self.keys.1,
            session_token: None,
            region: "us-east-1",
            unix_s: (engine::wall_clock() / 1_000_000_000) as i64 + self.skew_s,
        };
        let request = RequestToSign {
            method: self.method,
            path: &self.path,
            query: &self.query,
            headers: &borrowed,
        };
        let signed = sign_request(&signer, &request, payload).unwrap();
        let framing = match self.payload {
            Payload::Unsigned | Payload::Sha256(_) => None,
            Payload::SignedChunks => Some(Framing::Signed(signed.seed.clone())),
            Payload::SignedChunksTrailer => Some(Framing::SignedTrailer(signed.seed.clone())),
            Payload::UnsignedTrailer => Some(Framing::Unsigned),
        };
        let body = framing.map_or_else(|| self.body.clone(), |framing| self.chunks(framing));
        let mark = if self.query.is_empty() { "" } else { "?" };
        let mut head = format!(
            "{} {}{mark}{} HTTP/1.1\r\n",
            self.method, self.path, self.query
        );
        for (name, value) in &headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        write!(
            head,
            "x-amz-date: {}\r\nx-amz-content-sha256: {payload}\r\nAuthorization: {}\r\n\
             Content-Length: {}\r\n\r\n",
            signed.amz_date,
            signed.authorization,
            body.len()
        )
        .unwrap();
        let mut out = head.into_bytes();
        out.extend_from_slice(&body);
        out
    }

    fn chunks(&self, framing: Framing) -> Vec<u8> {
        let (mut encoder, mut out) = (Encoder::new(framing), Vec::new());
        for chunk in self.body.chunks(64 << 10) {
            encoder.chunk(&mut out, chunk);
        }
        let trailers: Vec<(&str, &str)> = self.trailers.iter().map(|(n, v)| (&**n, &**v)).collect();
        encoder.finish(&mut out, &trailers);
        out
    }

    /// Sends it on a connection of its own; `None` when the answer is cut off.
    pub async fn send(&self, addr: SocketAddr) -> Option<Answer> {
        let mut connection = Connection::open(addr).await;
        connection.send(self.encode(addr)).await;
        connection.answer(self.method == "HEAD").await
    }
}

/// A connection and what has arrived on it.
pub struct Connection {
    pub stream: TcpStream,
    got: Vec<u8>,
}

impl Connection {
    pub async fn open(addr: SocketAddr) -> Connection {
        Connection {
            stream: TcpStream::connect(&Addr::Inet(addr)).await.unwrap(),
            got: Vec::new(),
        }
    }

    /// Sends; a server that has closed already has said why.
    pub async fn send(&mut self, bytes: Vec<u8>) {
        let _ = self.stream.send(bytes).await;
    }

    /// The next answer; `None` when the connection ends before it is whole.
    pub async fn answer(&mut self, is_head: bool) -> Option<Answer> {
        let at = loop {
            match self.got.windows(4).position(|w| w == b"\r\n\r\n") {
                Some(at) => break at,
                None => self.receive().await?,
            }
        };
        let text = String::from_utf8(self.got[..at].to_vec()).unwrap();
        let headers: Vec<(String, String)> = text
            .split("\r\n")
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let status = text[9..12].parse().unwrap();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        let length = answer.header("content-length");
        let length = length.map_or(0, |text| text.parse().unwrap());
        let length = if is_head || status == 204 || status == 304 {
            0
        } else {
            length
        };
        while self.got.len() < at + 4 + length {
            self.receive().await?;
        }
        answer.body = self.got[at + 4..at + 4 + length].to_vec();
        self.got.drain(..at + 4 + length);
        Some(answer)
    }

    /// Bytes that came after the last whole answer.
    pub fn rest(&self) -> &[u8] {
        &self.got
    }

    async fn receive(&mut self) -> Option<()> {
        let (count, bytes) = self.stream.recv(vec![0; 65_536]).await;
        let count = count.ok().filter(|count| *count > 0)?;
        self.got.extend_from_slice(&bytes[..count]);
        Some(())
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The texts of an XML element, in order.
    pub fn all(&self, element: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let pieces = text.split(&open).skip(1);
        pieces
            .map(|rest| rest.split(&close).next().unwrap().to_owned())
            .collect()
    }

    #[track_caller]
    pub fn one(&self, element: &str) -> String {
        let mut all = self.all(element);
        assert_eq!(all.len(), 1, "{element} in {}", self.text());
        all.remove(0)
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{:?} {}", self.headers, self.text());
        self
    }

    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Answer {
        let answer = self.expect(status);
        assert_eq!(answer.one("Code"), code, "{}", answer.text());
        answer
    }
}

/// Bytes that differ in every block, from a seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = engine::Rng::new(seed);
    (0..len).map(|_| rng.next_u64() as u8).collect()
}
