//! `ultractl context`: the clouds that an operator works on, and which one is asked now.
//!
//! A context is chosen by `--context`, else by ULTRACTL_CONTEXT, else by the file's `current`. Flags and
//! the environment win over what it says.

mod file;

use std::fmt::Write as _;
use std::io::BufRead as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Subcommand, ValueEnum};
use serde::Serialize;
use toml_edit::{Array, InlineTable, Item, Table, value};

use self::file::{Context, File};
pub use self::file::{Login, Target};
use crate::failure::{Exit, Failure};
use crate::output::{Format, show, table};

/// Where the contexts are kept and which one is asked.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// The context to work on [default: the current one].
    #[arg(long, global = true, env = "ULTRACTL_CONTEXT", value_name = "NAME")]
    context: Option<String>,
    /// The file of contexts [default: ultracloud/contexts.toml in the XDG config directory].
    #[arg(long, global = true, env = "ULTRACTL_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows the contexts; the current one has a star.
    List,
    /// Shows a context, the current one when none is named. Passwords and tokens are not shown.
    Show {
        /// Its name.
        name: Option<String>,
    },
    /// Makes a context the current one.
    Use {
        /// Its name.
        name: String,
    },
    /// Says how a service of a context is reached, in place of what was said of it before.
    Set(Set),
    /// Forgets a context.
    Delete {
        /// Its name.
        name: String,
    },
}

/// A service that a context speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Service {
    /// The control services: buckets, operations.
    Api,
    /// The coordination store.
    Chainfire,
}

impl Service {
    /// Its key in the file.
    fn key(self) -> &'static str {
        match self {
            Service::Api => "api",
            Service::Chainfire => "chainfire",
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Set {
    /// The context's name; it is made when there is none. The first one becomes the current one.
    name: String,
    /// The service.
    #[arg(value_enum)]
    service: Service,
    /// URLs, commas between; the first that answers is asked.
    #[arg(long, required = true, value_name = "URLS", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// User and password, a colon between; `-` reads them from stdin, which no list of processes shows.
    #[arg(long, value_name = "NAME:PASSWORD", conflicts_with = "token")]
    user: Option<String>,
    /// A token that the service has given; `-` reads it from stdin.
    #[arg(long)]
    token: Option<String>,
    /// PEM certificate to show.
    #[arg(long, value_name = "FILE", requires_all = ["key", "cacert"])]
    cert: Option<PathBuf>,
    /// PEM private key of the certificate.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// PEM certificates of those who may sign the servers' certificates.
    #[arg(long, value_name = "FILE", requires = "cert")]
    cacert: Option<PathBuf>,
}

impl Choice {
    /// The file, read.
    fn read(&self) -> Result<File> {
        let given = self
            .config
            .clone()
            .filter(|path| !path.as_os_str().is_empty());
        let path = match given {
            Some(path) => std::path::absolute(path)?,
            None => default_path()?,
        };
        File::read(&path)
    }

    /// What the chosen context says, and its name; nothing where none is chosen and none is current.
    pub fn chosen(&self) -> Result<Option<(String, Context)>> {
        let mut file = self.read()?;
        let asked = self.context.clone().filter(|name| !name.is_empty());
        let Some(name) = asked.or_else(|| file.current.clone()) else {
            return Ok(None);
        };
        match file.contexts.remove(&name) {
            Some(context) => Ok(Some((name, context))),
            None => Err(unknown(&name, &file).into()),
        }
    }
}

fn default_path() -> Result<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).map(PathBuf::from);
    // As the XDG base directory specification has it: a relative path does not count.
    let given = dir("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let config = given.or_else(|| Some(dir("HOME")?.join(".config")));
    let config = config.ok_or_else(|| {
        Failure::usage("neither HOME nor XDG_CONFIG_HOME is set")
            .next("name the file of contexts by --config or ULTRACTL_CONFIG")
    })?;
    Ok(config.join("ultracloud/contexts.toml"))
}

fn unknown(name: &str, file: &File) -> Failure {
    let known: Vec<&str> = file.contexts.keys().map(String::as_str).collect();
    let next = match known[..] {
        [] => format!("`ultractl context set {name} chainfire --endpoints URL` makes it"),
        _ => format!("there are: {}", known.join(", ")),
    };
    let what = format!("no context {name} in {}", file.path.display());
    Failure::new(Exit::NotFound, "no-context", what)
        .object(format!("context {name}"))
        .next(next)
}

/// A context as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    current: bool,
    services: Vec<ShownService>,
}

#[derive(Debug, Serialize)]
struct ShownService {
    service: &'static str,
    endpoints: Vec<String>,
    /// `none`, `user NAME` or `token`.
    login: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cacert: Option<PathBuf>,
}

impl ShownService {
    /// Its part of a row.
    fn cells(&self, format: Format) -> Vec<String> {
        let mut cells = vec![self.service.to_owned(), self.endpoints.join(",")];
        if format == Format::Wide {
            let file = |path: &Option<PathBuf>| match path {
                Some(path) => path.display().to_string(),
                None => "-".to_owned(),
            };
            cells.extend([self.login.clone(), file(&self.cert), file(&self.cacert)]);
        }
        cells
    }
}

impl Shown {
    fn of(file: &File, name: &str, context: &Context) -> Shown {
        let services = [
            (Service::Api, context.api.as_ref()),
            (Service::Chainfire, context.chainfire.as_ref()),
        ];
        let said = services.into_iter().filter_map(|(service, target)| {
            let target = target?;
            let tls = target.tls.as_ref();
            Some(ShownService {
                service: service.key(),
                endpoints: target.endpoints.clone(),
                login: match &target.login {
                    Login::None => "none".into(),
                    Login::User(name, _) => format!("user {name}"),
                    Login::Token(_) => "token".into(),
                },
                cert: tls.map(|files| files.cert.clone()),
                key: tls.map(|files| files.key.clone()),
                cacert: tls.and_then(|files| files.ca.clone()),
            })
        });
        Shown {
            name: name.to_owned(),
            current: file.current.as_deref() == Some(name),
            services: said.collect(),
        }
    }

    fn text(&self) -> String {
        let current = if self.current { " (current)" } else { "" };
        let mut text = format!("{}{current}\n", self.name);
        for one in &self.services {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}: {}", one.service, one.endpoints.join(", "));
            let _ = writeln!(text, "  login: {}", one.login);
            for (what, file) in [
                ("cert", &one.cert),
                ("key", &one.key),
                ("cacert", &one.cacert),
            ] {
                if let Some(file) = file {
                    let _ = writeln!(text, "  {what}: {}", file.display());
                }
            }
        }
        text
    }
}

/// Runs a command.
pub fn run(choice: &Choice, command: Command, format: Format) -> Result<()> {
    let file = choice.read()?;
    match command {
        Command::List => {
            let contexts = file.contexts.iter();
            let all: Vec<Shown> = contexts
                .map(|(name, context)| Shown::of(&file, name, context))
                .collect();
            show(format, &all, |all| listed(all, format))
        }
        Command::Show { name } => {
            let asked = name
                .or_else(|| choice.context.clone())
                .or_else(|| file.current.clone());
            let name = asked.ok_or_else(|| {
                Failure::new(Exit::NotFound, "no-context", "there is no current context")
                    .next("`ultractl context list` shows what there is")
            })?;
            let context = file.contexts.get(&name);
            let context = context.ok_or_else(|| unknown(&name, &file))?;
            show(format, &Shown::of(&file, &name, context), Shown::text)
        }
        Command::Use { name } => {
            if !file.contexts.contains_key(&name) {
                return Err(unknown(&name, &file).into());
            }
            let file = file.change(|document| document["current"] = value(&name))?;
            changed(&file, &name, format)
        }
        Command::Set(set) => {
            let name = set.name.clone();
            let file = write(file, set)?;
            changed(&file, &name, format)
        }
        Command::Delete { name } => {
            if !file.contexts.contains_key(&name) {
                return Err(unknown(&name, &file).into());
            }
            let is_current = file.current.as_deref() == Some(&name);
            file.change(|document| {
                if let Some(contexts) = document["contexts"].as_table_like_mut() {
                    contexts.remove(&name);
                }
                if is_current {
                    document.remove("current");
                }
            })?;
            let gone = serde_json::json!({ "deleted": name });
            show(format, &gone, |_| format!("deleted {name}\n"))
        }
    }
}

fn changed(file: &File, name: &str, format: Format) -> Result<()> {
    let context = file
        .contexts
        .get(name)
        .context("a context that was written is there")?;
    show(format, &Shown::of(file, name, context), Shown::text)
}

fn listed(contexts: &[Shown], format: Format) -> String {
    if contexts.is_empty() {
        return "no contexts; `ultractl context set NAME chainfire --endpoints URL` makes one\n"
            .into();
    }
    let mut heads = vec!["", "NAME", "SERVICE", "ENDPOINTS"];
    if format == Format::Wide {
        heads.extend(["LOGIN", "CERT", "CACERT"]);
    }
    let mut rows = Vec::new();
    for context in contexts {
        let star = if context.current { "*" } else { "" };
        let first = [star.to_owned(), context.name.clone()];
        if context.services.is_empty() {
            let rest = vec!["-".to_owned(); heads.len() - first.len()];
            rows.push([&first[..], &rest].concat());
        }
        let services = context.services.iter();
        rows.extend(services.map(|one| [&first[..], &one.cells(format)].concat()));
    }
    table(&heads, &rows)
}

/// What was given, or the first line of stdin for `-`.
fn given(text: Option<String>) -> Result<Option<String>> {
    match text.as_deref() {
        Some("-") => {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line)?;
            Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
        }
        _ => Ok(text),
    }
}

fn write(file: File, set: Set) -> Result<File> {
    if !file::is_name(&set.name) {
        return Err(file::not_a_name(&set.name).into());
    }
    file::check(&set.endpoints, set.cert.is_some()).map_err(Failure::usage)?;
    if set.service == Service::Api && set.user.is_some() {
        return Err(Failure::usage(file::API_TAKES_TOKENS).into());
    }
    let mut block = Table::new();
    block["endpoints"] = value(set.endpoints.iter().collect::<Array>());
    if let Some(user) = given(set.user)? {
        Login::user(&user).ok_or_else(|| Failure::usage("--user is NAME:PASSWORD"))?;
        block["user"] = value(user);
    }
    if let Some(token) = given(set.token)? {
        block["token"] = value(token);
    }
    let mut tls = InlineTable::new();
    for (what, path) in [("cert", set.cert), ("key", set.key), ("ca", set.cacert)] {
        let Some(path) = path else { continue };
        let path = std::path::absolute(path)?;
        let path = path.to_str();
        let path = path.with_context(|| format!("the path of --{what} is not UTF-8"))?;
        tls.insert(what, path.into());
    }
    if !tls.is_empty() {
        block["tls"] = value(tls);
    }
    let is_first = file.current.is_none();
    file.change(|document| {
        if is_first {
            document["current"] = value(&set.name);
        }
        let contexts = table_in(document.as_table_mut(), "contexts");
        table_in(contexts, &set.name)[set.service.key()] = Item::Table(block);
    })
}

/// A table of a table, made where there is none; one that is written inline becomes one with a head.
fn table_in<'a>(parent: &'a mut Table, key: &str) -> &'a mut Table {
    let implicit = || {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    };
    let item = parent.entry(key).or_insert_with(implicit);
    if let Some(inline) = item.as_inline_table() {
        *item = Item::Table(inline.clone().into_table());
    }
    item.as_table_mut()
        .expect("a file that was read has tables here")
}
