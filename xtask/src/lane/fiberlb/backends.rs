//! A backend: nginx, a name server and iperf3 on a machine of their own. Each says who it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::net::Net;
use crate::process::{self, Running};

const START: Duration = Duration::from_secs(20);

/// See the module's head.
pub struct Backend {
    machine: usize,
    name: String,
    dir: PathBuf,
    starts: u32,
    web: Option<Running>,
    _others: [Running; 2],
}

impl Backend {
    /// Starts its servers.
    pub fn start(net: &Net, machine: usize, name: &str, dir: &Path) -> Result<Backend> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let mut dns = net.on(machine, "/usr/sbin/dnsmasq");
        dns.args([
            "--keep-in-foreground",
            "--port=5353",
            "--no-resolv",
            "--no-hosts",
        ])
        .args(["--conf-file=/dev/null", "--pid-file=", "--user=root"])
        .arg(format!("--txt-record=who.test,{name}"));
        let mut speed = net.on(machine, "iperf3");
        speed.args(["--server", "--port", "5201"]);
        let others = [
            Running::start(&mut dns, &dir.join("dnsmasq.log"))?,
            Running::start(&mut speed, &dir.join("iperf3.log"))?,
        ];
        let mut backend = Backend {
            machine,
            name: name.to_owned(),
            dir,
            starts: 0,
            web: None,
            _others: others,
        };
        backend.revive(net)?;
        Ok(backend)
    }

    /// Starts its web server.
    pub fn revive(&mut self, net: &Net) -> Result<()> {
        self.starts += 1;
        let dir = self.dir.display();
        let name = &self.name;
        let config = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;\n  \
             client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;\n  \
             uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;\n  \
             server {{ listen 8080 backlog=4096; location / {{ return 200 \"{name}\\n\"; }} }}\n}}\n"
        );
        let path = self.dir.join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = net.on(self.machine, "/usr/sbin/nginx");
        command
            .arg("-c")
            .arg(&path)
            .arg("-e")
            .arg(self.dir.join("error.log"));
        let log = self.dir.join(format!("nginx-{}.log", self.starts));
        self.web = Some(Running::start(&mut command, &log)?);
        let url = format!("http://{}:8080/", Net::addr(self.machine));
        let answers = process::until(START, || {
            let asked = net.run(self.machine, &["curl", "-fsS", "--max-time", "5", &url]);
            Ok(asked.ok().filter(|said| said == name))
        })?;
        answers
            .map(drop)
            .with_context(|| format!("nginx of {name} does not answer"))
    }

    /// Kills its web server.
    pub fn kill(&mut self) -> Result<()> {
        self.web.take().map(drop).context("it does not run")
    }
}
