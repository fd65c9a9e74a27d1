//! The node as a process: started over a data directory, watched through its admin endpoint,
//! killed or drained. Dropping a node ends its process, unless it was started to live on.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::process;

const START_DEADLINE: Duration = Duration::from_mins(1);
const DRAIN_DEADLINE: Duration = Duration::from_mins(1);
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// Loopback ports, the same for every start of a run.
#[derive(Clone, Copy)]
pub struct Ports {
    s3: SocketAddr,
    admin: SocketAddr,
    chainfire: SocketAddr,
    chainfire_peer: SocketAddr,
}

impl Ports {
    /// Asks the kernel for ports that nothing listens on.
    pub fn free() -> Result<Self> {
        let any = (Ipv4Addr::LOCALHOST, 0);
        let (s3, admin) = (TcpListener::bind(any)?, TcpListener::bind(any)?);
        let (chainfire, peer) = (TcpListener::bind(any)?, TcpListener::bind(any)?);
        Ok(Self {
            s3: s3.local_addr()?,
            admin: admin.local_addr()?,
            chainfire: chainfire.local_addr()?,
            chainfire_peer: peer.local_addr()?,
        })
    }

    /// Where S3 is served.
    pub fn s3(&self) -> SocketAddr {
        self.s3
    }

    /// Where etcd's clients are served.
    pub fn chainfire(&self) -> SocketAddr {
        self.chainfire
    }

    /// Where health is told.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }
}

/// What every start of the node has in common.
pub struct Spec<'a> {
    /// The binary.
    pub server: &'a Path,
    /// Its `--data-dir`.
    pub data: PathBuf,
    /// Where its words go, start after start.
    pub log: PathBuf,
    /// Where guests connect; short, as the kernel bounds paths of sockets.
    pub sockets: PathBuf,
    /// Its listeners.
    pub ports: Ports,
}

impl Spec<'_> {
    /// Name and version of the binary.
    pub fn version(&self) -> Result<String> {
        process::capture(Command::new(self.server).arg("--version"))
            .context("the server does not tell its version")
    }

    fn command(&self, lifetime: Lifetime) -> Result<Command> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = match lifetime {
            Lifetime::OfThisProcess => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]).arg(self.server);
                command
            }
            Lifetime::Own => {
                let mut command = Command::new(self.server);
                command.process_group(0);
                command
            }
        };
        command
            .arg("node")
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--role", "lightningstor", "--role", "chainfire"])
            .args(["--role", "coronafs"])
            .args(["--chainfire-listen", &self.ports.chainfire.to_string()])
            .args([
                "--chainfire-peer-listen",
                &self.ports.chainfire_peer.to_string(),
            ])
            .args(["--s3-listen", &self.ports.s3.to_string()])
            .args(["--admin-listen", &self.ports.admin.to_string()])
            .env(
                "ULTRACLOUD_CORONAFS__SOCKET_DIR",
                format!("\"{}\"", self.sockets.display()),
            )
            .env_remove("ULTRACLOUD_ACCESS_KEY")
            .env_remove("ULTRACLOUD_SECRET_KEY")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }
}

/// Whether the process ends with this one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is killed when the [`Node`] is dropped, and by the kernel when this process dies first.
    OfThisProcess,
    /// It gets a process group of its own, so that it outlives the terminal's interrupt.
    Own,
}

/// A node that answered its health check.
pub struct Node {
    child: Child,
    left: bool,
}

impl Node {
    /// Starts the process and waits until it is healthy.
    pub fn start(spec: &Spec, lifetime: Lifetime) -> Result<Self> {
        let mut command = spec.command(lifetime)?;
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", process::shown(&command)))?;
        let mut node = Self { child, left: false };
        let healthy = process::until(START_DEADLINE, || {
            if let Some(status) = node.child.try_wait()? {
                bail!("`{}` ended with {status}", process::shown(&command));
            }
            Ok(is_healthy(spec.ports.admin).then_some(()))
        })?;
        ensure!(
            healthy.is_some(),
            "http://{}/healthz was not 200 within {} s",
            spec.ports.admin,
            START_DEADLINE.as_secs()
        );
        Ok(node)
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "the node had ended by itself"
        );
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the process to finish; it must end by itself, with status 0.
    pub fn drain(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        process::run(Command::new("kill").args(["-TERM", &pid]))?;
        match process::wait(&mut self.child, DRAIN_DEADLINE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the node ended with {status} after SIGTERM"),
            None => bail!(
                "the node still ran {} s after SIGTERM",
                DRAIN_DEADLINE.as_secs()
            ),
        }
    }

    /// Lets the process live on and gives its id.
    pub fn leave(mut self) -> u32 {
        self.left = true;
        self.child.id()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.left {
            // Either may fail when the process has already ended.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Whether `/healthz` answers 200 in time.
fn is_healthy(admin: SocketAddr) -> bool {
    let ask = || -> std::io::Result<[u8; 12]> {
        let mut stream = TcpStream::connect_timeout(&admin, PROBE_DEADLINE)?;
        stream.set_read_timeout(Some(PROBE_DEADLINE))?;
        write!(
            stream,
            "GET /healthz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
        )?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status)
    };
    ask().is_ok_and(|status| status.ends_with(b" 200"))
}

/// What the first start made for the owner of the data directory alone.
pub struct RootKeys {
    /// As AWS_ACCESS_KEY_ID.
    pub access_key: String,
    /// As AWS_SECRET_ACCESS_KEY.
    pub secret_key: String,
}

impl RootKeys {
    /// Reads `root-credentials` and checks that nobody else can.
    pub fn read(data: &Path) -> Result<Self> {
        let path = data.join("root-credentials");
        let shown = path.display();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
        let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{shown} has mode {mode:o}, expected 600");
        let table: toml::Table = text
            .parse()
            .with_context(|| format!("{shown} is not TOML"))?;
        let value = |key: &str| {
            let value = table.get(key).and_then(toml::Value::as_str);
            value
                .map(str::to_owned)
                .with_context(|| format!("{shown} has no {key}"))
        };
        Ok(Self {
            access_key: value("access_key")?,
            secret_key: value("secret_key")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    /// Answers one connection with `answer`.
    fn admin(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let mut byte = [0];
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                asked.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn only_a_200_is_healthy() {
        assert!(is_healthy(admin("HTTP/1.1 200 OK\r\n\r\n")));
        assert!(!is_healthy(admin(
            "HTTP/1.1 503 Service Unavailable\r\n\r\n"
        )));
        assert!(!is_healthy(admin("HTTP")));
        assert!(!is_healthy(Ports::free().unwrap().s3()));
    }

    #[test]
    fn a_server_that_ends_at_once_is_an_error_that_names_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec {
            server: Path::new("false"),
            data: dir.path().into(),
            log: dir.path().join("log"),
            sockets: "sockets".into(),
            ports: Ports::free().unwrap(),
        };
        let error = Node::start(&spec, Lifetime::OfThisProcess).err().unwrap();
        let text = format!("{error:#}");
        assert!(
            text.contains("false node --data-dir") && text.contains("ended with"),
            "{text}"
        );
    }

    #[test]
    fn root_keys_are_read_from_a_file_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-credentials");
        assert!(RootKeys::read(dir.path()).is_err());
        std::fs::write(&path, "access_key = \"a\"\nsecret_key = \"b\"\n").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let error = RootKeys::read(dir.path()).err().unwrap().to_string();
        assert!(error.contains("mode 644"), "{error}");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let keys = RootKeys::read(dir.path()).unwrap();
        assert_eq!(
            (keys.access_key.as_str(), keys.secret_key.as_str()),
            ("a", "b")
        );
    }
}
