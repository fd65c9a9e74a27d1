//! nginx with static files: the ceiling for GET. It checks no signature and has no index.
//!
//! One process, no master: what is started is what serves, and what is killed.
#![forbid(unsafe_code)]

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Contender;
use crate::objects::site::{Access, Endpoint, Site, free_address};
use crate::process::{self, Process, SERVER_CPU, pinned};

pub(super) const NAME: &str = "nginx";

pub(super) const CONTENDER: Contender = Contender {
    name: NAME,
    optional: false,
    hint: "install nginx-light, or run `cargo xtask setup --bench`",
    find: || process::on_path("nginx"),
    start,
};

fn start(program: &Path, dir: &Path) -> Result<Site> {
    let address = free_address()?;
    let files = dir.join("files");
    fs::create_dir(&files).context("make the directory of files")?;
    let config_path = dir.join("nginx.conf");
    fs::write(&config_path, config(dir, address)?).context("write nginx.conf")?;
    let mut command = pinned(SERVER_CPU, program);
    command.arg("-p").arg(dir).arg("-c").arg(&config_path);
    // Else the compiled-in log, which may belong to a system's nginx, is opened first.
    command.arg("-e").arg(dir.join("error.log"));
    let mut process = Process::start(NAME, &mut command, dir)?;
    super::listening(&mut process, address)?;
    Ok(Site {
        name: NAME,
        version: process::version(program, "-v").unwrap_or_else(|| "version unknown".to_owned()),
        endpoint: Endpoint {
            address,
            access: Access::Files(files),
        },
        list_keys_max: 0,
        process,
    })
}

fn config(dir: &Path, address: SocketAddr) -> Result<String> {
    let dir = dir.to_str().context("nginx needs a directory in UTF-8")?;
    ensure!(
        !dir.contains(['"', '\\', '$', '\n']),
        "{dir:?} cannot be written into nginx.conf"
    );
    Ok(format!(
        r#"daemon off;
master_process off;
worker_processes 1;
pid "{dir}/nginx.pid";
error_log "{dir}/error.log" error;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    open_file_cache max=12000 inactive=3600s;
    open_file_cache_valid 3600s;
    client_body_temp_path "{dir}/client";
    proxy_temp_path "{dir}/proxy";
    fastcgi_temp_path "{dir}/fastcgi";
    uwsgi_temp_path "{dir}/uwsgi";
    scgi_temp_path "{dir}/scgi";
    server {{
        listen {address};
        root "{dir}/files";
    }}
}}
"#
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_would_end_the_quotes_is_refused() {
        let address = "127.0.0.1:1".parse().unwrap();
        let text = config(Path::new("/t/a b"), address).unwrap();
        assert!(text.contains("root \"/t/a b/files\";") && text.contains("listen 127.0.0.1:1;"));
        assert!(config(Path::new("/t/a\"b"), address).is_err());
    }
}
