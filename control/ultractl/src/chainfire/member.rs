//! `ultractl chainfire member`: who is in the cluster, and changing it.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Subcommand;
use etcd_wire::chainfire::management_client::ManagementClient;
use etcd_wire::chainfire::{
    ChangeMembershipRequest, LeaderTransferRequest, Member, MemberAddRequest, MemberListRequest,
    MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, StatusRequest, StatusResponse,
};
use tonic::transport::Channel;

use super::{Session, failed};
use crate::failure::{Exit, Failure};
use crate::output::{Format, show, table};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows the members.
    List,
    /// Shows where the cluster stands, who answers, and what is refused now.
    Status,
    /// Adds a member, which is then started with the cluster's state `existing`.
    Add {
        /// Its name.
        name: String,
        /// Where other members will reach it, as http://HOST:PORT.
        #[arg(long, required = true, value_delimiter = ',')]
        peer_urls: Vec<String>,
        /// It only learns; without this it votes once it has caught up.
        #[arg(long)]
        learner: bool,
    },
    /// Makes a learner that has caught up a voter.
    Promote {
        /// Its name, or its id in hexadecimal.
        member: String,
    },
    /// Replaces where other members reach a member.
    Update {
        /// Its name, or its id in hexadecimal.
        member: String,
        /// The URLs.
        #[arg(long, required = true, value_delimiter = ',')]
        peer_urls: Vec<String>,
    },
    /// Removes a member, also the leader.
    Remove {
        /// Its name, or its id in hexadecimal.
        member: String,
    },
    /// Hands leadership to a member, or to the most advanced other one.
    Transfer {
        /// Its name, or its id in hexadecimal.
        member: Option<String>,
    },
    /// Replaces the whole set of voters in one step (joint consensus).
    Replace {
        /// Names or ids of the voters after it.
        #[arg(required = true)]
        voters: Vec<String>,
        /// Voters that leave stay as learners.
        #[arg(long)]
        retain: bool,
    },
}

pub async fn run(session: &Session, command: Command, format: Format) -> Result<()> {
    let mut client = ManagementClient::new(session.channel.clone());
    match command {
        Command::List => {
            let members = members(session, &mut client).await?;
            show(format, &members, |members| listed(members))
        }
        Command::Status => {
            let answer = client.status(session.request(StatusRequest {})).await;
            show(format, &answer.map_err(failed)?.into_inner(), told)
        }
        Command::Add {
            name,
            peer_urls,
            learner,
        } => {
            let request = session.request(MemberAddRequest {
                name,
                peer_urls,
                is_learner: learner,
                ..MemberAddRequest::default()
            });
            let answer = client
                .member_add(request)
                .await
                .map_err(failed)?
                .into_inner();
            show(format, &answer, |answer| {
                let id = answer.member.as_ref().map_or(0, |member| member.id);
                format!("added member {id:x}\n{}", listed(&answer.members))
            })
        }
        changing => change(session, &mut client, changing, format).await,
    }
}

async fn change(
    session: &Session,
    client: &mut ManagementClient<Channel>,
    command: Command,
    format: Format,
) -> Result<()> {
    let known = members(session, client).await?;
    let id = |member: &str| find(&known, member);
    match command {
        Command::Promote { member } => {
            let request = session.request(MemberPromoteRequest { id: id(&member)? });
            let answer = client
                .member_promote(request)
                .await
                .map_err(failed)?
                .into_inner();
            show(format, &answer, |answer| listed(&answer.members))
        }
        Command::Update { member, peer_urls } => {
            let request = session.request(MemberUpdateRequest {
                id: id(&member)?,
                peer_urls,
                ..MemberUpdateRequest::default()
            });
            let answer = client
                .member_update(request)
                .await
                .map_err(failed)?
                .into_inner();
            show(format, &answer, |answer| listed(&answer.members))
        }
        Command::Remove { member } => {
            let request = session.request(MemberRemoveRequest { id: id(&member)? });
            let answer = client
                .member_remove(request)
                .await
                .map_err(failed)?
                .into_inner();
            show(format, &answer, |answer| listed(&answer.members))
        }
        Command::Transfer { member } => {
            let target_id = member.as_deref().map_or(Ok(0), id)?;
            let request = session.request(LeaderTransferRequest { target_id });
            let answer = client
                .leader_transfer(request)
                .await
                .map_err(failed)?
                .into_inner();
            show(format, &answer, |answer| {
                format!(
                    "member {:x} leads in term {}\n",
                    answer.leader_id, answer.term
                )
            })
        }
        Command::Replace { voters, retain } => {
            let voters = voters
                .iter()
                .map(|voter| id(voter))
                .collect::<Result<_>>()?;
            let request = session.request(ChangeMembershipRequest {
                voters,
                members: Vec::new(),
                retain_removed_as_learners: retain,
            });
            let answer = client
                .change_membership(request)
                .await
                .map_err(failed)?
                .into_inner();
            show(format, &answer, |answer| listed(&answer.members))
        }
        Command::List | Command::Status | Command::Add { .. } => Ok(()),
    }
}

async fn members(session: &Session, client: &mut ManagementClient<Channel>) -> Result<Vec<Member>> {
    let request = session.request(MemberListRequest { local: false });
    Ok(client
        .member_list(request)
        .await
        .map_err(failed)?
        .into_inner()
        .members)
}

/// The id of the member with this name, or with this id.
fn find(members: &[Member], asked: &str) -> Result<u64> {
    let id = u64::from_str_radix(asked, 16).ok();
    let named: Vec<u64> = members
        .iter()
        .filter(|member| member.name == asked || Some(member.id) == id)
        .map(|member| member.id)
        .collect();
    match named[..] {
        [id] => Ok(id),
        [] => {
            let failure = Failure::new(Exit::NotFound, "no-member", format!("no member {asked}"))
                .object(format!("member {asked}"))
                .next("`ultractl chainfire member list` shows them");
            Err(failure.into())
        }
        _ => {
            let what = format!("several members are called {asked}");
            let failure = Failure::new(Exit::Refused, "ambiguous-member", what)
                .object(format!("member {asked}"))
                .next("name one by its id: `ultractl chainfire member list` shows them");
            Err(failure.into())
        }
    }
}

fn listed(members: &[Member]) -> String {
    let row = |member: &Member| {
        let role = if member.is_learner {
            "learner"
        } else {
            "voter"
        };
        vec![
            format!("{:x}", member.id),
            member.name.clone(),
            role.to_owned(),
            member.peer_urls.join(","),
            member.client_urls.join(","),
        ]
    };
    let rows: Vec<Vec<String>> = members.iter().map(row).collect();
    table(&["ID", "NAME", "ROLE", "PEER URLS", "CLIENT URLS"], &rows)
}

fn told(status: &StatusResponse) -> String {
    let rows: Vec<Vec<String>> = status
        .members
        .iter()
        .map(|known| {
            let member = known.member.clone().unwrap_or_default();
            let leads = member.id == status.leader_id;
            let role = match (leads, known.is_voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            };
            let asked = status.member_id == status.leader_id;
            let answers = match (asked, known.reachable) {
                (false, _) => "ask the leader",
                (true, true) => "yes",
                (true, false) => "no",
            };
            let id = format!("{:x}", member.id);
            vec![
                id,
                member.name,
                role.into(),
                answers.into(),
                known.matched_index.to_string(),
            ]
        })
        .collect();
    let mut text = format!(
        "cluster {:x}, asked member {:x}, leader {:x}, term {}\n\
         log {} committed {} applied {}, revision {}, {} of {} bytes\n",
        status.cluster_id,
        status.member_id,
        status.leader_id,
        status.term,
        status.last_log_index,
        status.committed_index,
        status.applied_index,
        status.revision,
        status.db_size_bytes,
        status.db_quota_bytes,
    );
    text += &table(&["ID", "NAME", "ROLE", "ANSWERS", "HAS LOG TO"], &rows);
    for refusal in &status.refusals {
        let (what, why, repair) = (&refusal.what, &refusal.why, &refusal.repair);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "refused now: {what}: {why}; to repair: {repair}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_by_name_or_id_and_two_of_a_name_are_not() {
        let member = |id, name: &str| Member {
            id,
            name: name.into(),
            ..Member::default()
        };
        let members = [member(0xab, "one"), member(2, "two"), member(3, "two")];
        assert_eq!(find(&members, "one").unwrap(), 0xab);
        assert_eq!(find(&members, "ab").unwrap(), 0xab);
        assert!(
            find(&members, "two")
                .unwrap_err()
                .to_string()
                .contains("several")
        );
        assert!(
            find(&members, "nobody")
                .unwrap_err()
                .to_string()
                .contains("no member")
        );
    }
}
