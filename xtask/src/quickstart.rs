//! `cargo xtask quickstart`: one node on this machine, shown to work by clients that are not ours.
//!
//! It builds the server, starts it on free loopback ports over an empty directory, drives it with
//! awscli, rclone, s3cmd and boto3 on real files, with etcdctl on keys and with a guest on a volume, kills it in the
//! middle, and compares every byte after the restart. Progress goes to stderr, the closing table to stdout. Only processes that it
//! started are ended. It talks to the node over the network only, as a user would.

mod clients;
mod etcdctl;
mod input;
mod node;
mod place;
mod show;
mod volumes;

use std::path::PathBuf;

use anyhow::{Context, Result};

use self::clients::Toolbox;
use self::etcdctl::Etcdctl;
use self::node::{Lifetime, Node, Ports};
use self::place::Place;
use self::show::Show;
use self::volumes::Volumes;
use crate::process;
use crate::setup;
use crate::workspace::{Profile, Workspace};

/// What `cargo xtask quickstart` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Leave a node running at the end, over the data that was put
    #[arg(long)]
    keep: bool,
    /// Keep the node's data and log in this directory instead of a throw-away one
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Use this server binary, and the ultractl beside it, instead of building them
    #[arg(long)]
    server: Option<PathBuf>,
}

/// Shows a node from start to drain; the first thing that does not hold is the error.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let tools = setup::run_as_progress(workspace, setup::Scope::Clients)?;
    let [server, cli] = if let Some(server) = &options.server {
        let server = std::path::absolute(server)?;
        let cli = server.with_file_name("ultractl");
        [server, cli]
    } else {
        eprintln!("building the server in release; the first time takes minutes");
        workspace.build_all(Profile::Release, ["ultracloud", "ultractl"])?
    };
    let programs = Programs { server, cli };
    let place = Place::prepare(options.dir.as_deref())?;
    let mut show = Show::default();
    let done = whole(workspace, options, &tools, &programs, &place, &mut show);
    match done {
        Ok(closing) => {
            println!("{show}\n{closing}");
            if options.keep {
                place.keep();
            }
            Ok(())
        }
        Err(error) => {
            eprint!("{show}");
            let log = place.log();
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            eprintln!("the server's last words:\n{}", process::tail(&said, 15));
            place.keep();
            Err(error.context(format!(
                "quickstart failed; the server's log is {}",
                log.display()
            )))
        }
    }
}

/// What is shown.
struct Programs {
    server: PathBuf,
    cli: PathBuf,
}

/// All steps; gives the text below the table.
fn whole(
    workspace: &Workspace,
    options: &Options,
    tools: &setup::Clients,
    programs: &Programs,
    place: &Place,
    show: &mut Show,
) -> Result<String> {
    let ports = Ports::free()?;
    let sockets = tempfile::tempdir()?;
    let spec = node::Spec {
        server: &programs.server,
        data: place.data(),
        log: place.log(),
        sockets: sockets.path().to_owned(),
        ports,
    };
    let version = spec.version()?;

    eprintln!("collecting real files and writing one of 1 GiB");
    let input = input::build(workspace, place.scratch())?;
    eprintln!("  {}", input.summary());

    let node = show.step("a node starts over an empty disk", &version, || {
        let node = Node::start(&spec, Lifetime::OfThisProcess)?;
        Ok((
            node,
            format!(
                "S3 on {}, etcd on {}, health on {}",
                ports.s3(),
                ports.chainfire(),
                ports.admin()
            ),
        ))
    })?;
    let keys = node::RootKeys::read(&spec.data)?;
    let toolbox = Toolbox::new(tools, place, ports, &keys)?;
    clients::drive(&toolbox, &input, show)?;
    let etcdctl = Etcdctl::new(ports.chainfire())?;
    let acknowledged = etcdctl.drive(show)?;
    let mut volumes = Volumes::new(&programs.cli, &spec, &tools.vm())?;
    volumes.boot(show)?;
    volumes.boot_from_image(&toolbox, show)?;

    show.step(
        "kill -9 while 8 connections put objects and the guest writes",
        toolbox.boto3(),
        || {
            volumes.begin_writing()?;
            let acknowledged = clients::interrupt(&toolbox, || node.kill())?;
            Ok(((), format!("{acknowledged} acknowledged so far")))
        },
    )?;
    let node = show.step("a restart over the same disk", &version, || {
        let node = Node::start(&spec, Lifetime::OfThisProcess)?;
        Ok((node, "healthy again".to_owned()))
    })?;
    clients::read_back(&toolbox, &input, show)?;
    etcdctl.read_back(&acknowledged, show)?;
    volumes.read_back(show)?;
    show.step("SIGTERM drains and ends the node", &version, || {
        node.drain()?;
        Ok(((), "exit status 0".to_owned()))
    })?;

    let end = if options.keep {
        let pid = Node::start(&spec, Lifetime::Own)
            .context("the node to keep")?
            .leave();
        let _kept = sockets.keep();
        let data = spec.data.display();
        format!("The node runs on as process {pid} over {data}.\nStop it: kill -TERM {pid}")
    } else {
        "The node has ended. To leave one running: cargo xtask quickstart --keep".to_owned()
    };
    Ok(format!("{}\n{end}", reach(ports, &keys, &toolbox)))
}

/// How to reach the node, and what to try.
fn reach(ports: Ports, keys: &node::RootKeys, toolbox: &Toolbox) -> String {
    let (s3, admin, aws) = (ports.s3(), ports.admin(), toolbox.aws_path());
    let etcd = ports.chainfire();
    let node::RootKeys {
        access_key,
        secret_key,
    } = keys;
    let bucket = toolbox.bucket(clients::TREE);
    format!(
        "S3 endpoint  http://{s3}\n\
         etcd's API   http://{etcd}\n\
         Admin        http://{admin}/healthz\n\
         Access key   {access_key}\n\
         Secret key   {secret_key}\n\
         \n\
         Try next, on a node that runs:\n\
         export AWS_ENDPOINT_URL=http://{s3} AWS_DEFAULT_REGION=us-east-1\n\
         export AWS_ACCESS_KEY_ID={access_key} AWS_SECRET_ACCESS_KEY={secret_key}\n\
         {aws} s3 ls s3://{bucket}/\n\
         {aws} s3 cp README.md s3://{bucket}/\n\
         etcdctl --endpoints {etcd} get --prefix /quickstart/\n\
         curl -s http://{admin}/healthz\n"
    )
}
