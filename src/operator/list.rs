//! The commands that ask once and print: lists, single records, and the verbs on a transfer.

use super::{
    Context,
    connection::required,
    error::Error,
    output::Form,
    view::{self, ClientView, TransferView},
    words,
};
use crate::{
    ids::{ClientId, TransferId},
    limits,
    wire::proto::{
        CancelTransferRequest, Client, DeleteTransferRequest, ListClientsRequest,
        ListTransfersRequest, PauseTransferRequest, ResumeTransferRequest, RetryTransferRequest,
        State, Transfer, control_client::ControlClient,
    },
};

type Control = ControlClient<super::connection::Way>;

/// `fts clients`
pub(super) async fn clients(context: &Context) -> Result<(), Error> {
    let mut page_token = String::new();
    let mut rows = Vec::new();
    loop {
        let page_size = limits::OPERATOR_PAGE_SIZE;
        let request = ListClientsRequest { page_size, page_token: page_token.clone() };
        let call = async |mut control: Control| control.list_clients(request).await;
        let page = context.connection.ask(call).await?;
        for client in &page.clients {
            match context.output.form {
                Form::Json => context.output.json(&ClientView::from(client)).await?,
                Form::Text => rows.push(client_row(client)),
            }
        }
        match next_page(&page_token, page.next_page_token)? {
            Some(token) => page_token = token,
            None => break,
        }
    }
    match context.output.form {
        Form::Json => Ok(()),
        Form::Text if rows.is_empty() => {
            context.output.note("no client has registered yet").await;
            Ok(())
        }
        Form::Text => {
            let head = ["ID", "PRESENCE", "LAST SEEN", "ACTIVE", "QUEUED", "HOST", "VERSION"];
            context.output.table(head, rows).await
        }
    }
}

fn client_row(client: &Client) -> [String; 7] {
    [
        client.id.clone(),
        view::presence(client.presence),
        words::ago_or_dash(client.last_seen.as_ref()),
        client.active_transfers.to_string(),
        client.queued_transfers.to_string(),
        client.host_name.clone(),
        client.version.clone(),
    ]
}

/// `fts client`
pub(super) async fn client(context: &Context, id: &ClientId) -> Result<(), Error> {
    let client = context.connection.client(id.as_str()).await?;
    if context.output.form == Form::Json {
        return context.output.json(&ClientView::from(&client)).await;
    }
    let mut pairs = vec![
        ("id", client.id.clone()),
        ("presence", view::presence(client.presence)),
        ("last seen", words::ago_or_dash(client.last_seen.as_ref())),
        ("connected", words::ago_or_dash(client.connected_since.as_ref())),
        ("first seen", words::ago_or_dash(client.first_seen.as_ref())),
        ("host", client.host_name.clone()),
        ("os", client.os.clone()),
        ("version", client.version.clone()),
        ("address", client.address.clone()),
        ("active", format!("{} of {}", client.active_transfers, client.jobs_max)),
        ("queued", client.queued_transfers.to_string()),
        ("sessions", client.session_epoch.to_string()),
    ];
    if !client.policy_digest.is_empty() {
        pairs.push(("policy", client.policy_digest.clone()));
    }
    if !client.audit_head.is_empty() {
        pairs.push(("audit", client.audit_head.clone()));
    }
    if client.audit_back_time.is_some() {
        pairs.push(("AUDIT WENT BACK", words::ago_or_dash(client.audit_back_time.as_ref())));
    }
    pairs.extend(client.allowed_roots.into_iter().map(|root| ("allows", root)));
    print(context, &pairs).await
}

/// `fts transfers`
pub(super) async fn transfers(
    context: &Context,
    client: Option<ClientId>,
    state: Option<State>,
    limit: u64,
) -> Result<(), Error> {
    let mut request = ListTransfersRequest {
        client_id: client.map(String::from).unwrap_or_default(),
        state: state.unwrap_or_default().into(),
        page_size: 0,
        page_token: String::new(),
    };
    let mut left = if limit == 0 { u64::MAX } else { limit };
    let mut rows = Vec::new();
    let has_more = loop {
        let page_size = limits::OPERATOR_PAGE_SIZE;
        request.page_size = u32::try_from(left).unwrap_or(page_size).min(page_size);
        let asked = request.clone();
        let call = async |mut control: Control| control.list_transfers(asked).await;
        let mut page = context.connection.ask(call).await?;
        page.transfers.truncate(request.page_size as usize);
        left -= page.transfers.len() as u64;
        for transfer in &page.transfers {
            match context.output.form {
                Form::Json => context.output.json(&TransferView::from(transfer)).await?,
                Form::Text => rows.push(transfer_row(transfer)),
            }
        }
        match next_page(&request.page_token, page.next_page_token)? {
            Some(_) if left == 0 => break true,
            Some(token) => request.page_token = token,
            None => break false,
        }
    };
    if context.output.form == Form::Text {
        let head = ["ID", "CLIENT", "STATE", "SIZE", "DONE", "CREATED", "PATH"];
        context.output.table(head, rows).await?;
    }
    if has_more {
        context.output.note(&format!("the newest {limit}; --limit 0 lists all")).await;
    }
    Ok(())
}

fn transfer_row(transfer: &Transfer) -> [String; 7] {
    let why = match (&transfer.waiting, &transfer.failure) {
        (Some(waiting), _) => Some(view::waiting_reason(waiting.reason)),
        (None, Some(failure)) if transfer.state() == State::Failed => {
            Some(view::fail_reason(failure.reason))
        }
        _ => None,
    };
    let gone = transfer.content_deleted.then(|| "deleted".to_owned());
    let notes: Vec<String> = why.into_iter().chain(gone).collect();
    let mut state = view::state(transfer.state);
    if !notes.is_empty() {
        state = format!("{state} ({})", notes.join(", "));
    }
    [
        transfer.id.clone(),
        transfer.client_id.clone(),
        state,
        transfer.size.map_or_else(|| "-".to_owned(), words::bytes),
        words::bytes(transfer.bytes_done),
        words::ago_or_dash(transfer.create_time.as_ref()),
        path(transfer),
    ]
}

fn path(transfer: &Transfer) -> String {
    let path = &transfer.path;
    if path.is_empty() { "(default file)".to_owned() } else { path.clone() }
}

/// `fts show`
pub(super) async fn show(context: &Context, id: TransferId) -> Result<(), Error> {
    let transfer = context.connection.transfer(&id.to_string()).await?;
    if context.output.form == Form::Json {
        return context.output.json(&TransferView::from(&transfer)).await;
    }
    let mut pairs = vec![
        ("client", transfer.client_id.clone()),
        ("path", path(&transfer)),
        ("state", words::standing(&transfer, None)),
        ("attempts", transfer.attempts.to_string()),
        ("created", words::ago_or_dash(transfer.create_time.as_ref())),
        ("updated", words::ago_or_dash(transfer.update_time.as_ref())),
        ("deadline", view::rfc3339(transfer.deadline.as_ref()).unwrap_or_else(|| "-".to_owned())),
        ("received", words::exact(transfer.bytes_received)),
    ];
    if !transfer.source_path.is_empty() {
        pairs.push(("source", transfer.source_path.clone()));
    }
    if transfer.bytes_kept > 0 {
        pairs.push(("kept", words::exact(transfer.bytes_kept)));
    }
    if !transfer.restart_detail.is_empty() {
        pairs.push(("began anew", transfer.restart_detail.clone()));
    }
    if transfer.max_rate > 0 {
        pairs.push(("cap", format!("{}/s", words::bytes(transfer.max_rate))));
    }
    if !transfer.request_id.is_empty() {
        pairs.push(("request id", transfer.request_id.clone()));
    }
    if transfer.state() == State::Complete {
        pairs.splice(0..0, words::summary(&transfer));
    } else {
        pairs.insert(0, ("transfer", transfer.id.clone()));
    }
    if transfer.state() == State::Failed {
        pairs.push(("what to do", words::advice(&transfer)));
    }
    print(context, &pairs).await
}

/// What is done to a transfer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verb {
    Cancel,
    Retry,
    Pause,
    Resume,
    Delete,
}

/// `fts cancel`, `retry`, `pause`, `resume`, `rm`
pub(super) async fn act(context: &Context, verb: Verb, id: TransferId) -> Result<(), Error> {
    let transfer_id = id.to_string();
    let ask = &context.connection;
    let transfer = match verb {
        Verb::Cancel => {
            let request = CancelTransferRequest { transfer_id };
            ask.ask(async |mut c: Control| c.cancel_transfer(request).await).await?.transfer
        }
        Verb::Retry => {
            let request = RetryTransferRequest { transfer_id };
            ask.ask(async |mut c: Control| c.retry_transfer(request).await).await?.transfer
        }
        Verb::Pause => {
            let request = PauseTransferRequest { transfer_id };
            ask.ask(async |mut c: Control| c.pause_transfer(request).await).await?.transfer
        }
        Verb::Resume => {
            let request = ResumeTransferRequest { transfer_id };
            ask.ask(async |mut c: Control| c.resume_transfer(request).await).await?.transfer
        }
        Verb::Delete => {
            let request = DeleteTransferRequest { transfer_id };
            ask.ask(async |mut c: Control| c.delete_transfer(request).await).await?.transfer
        }
    };
    let transfer = required(transfer)?;
    if context.output.form == Form::Json {
        return context.output.json(&TransferView::from(&transfer)).await;
    }
    let standing = words::standing(&transfer, None);
    let gone = if transfer.content_deleted { "; its bytes were deleted" } else { "" };
    context.output.line(&format!("{}  {standing}{gone}", transfer.id)).await
}

/// Returns the token of the next page, if there is one. One that leads nowhere else would lead on
/// for ever.
fn next_page(this: &str, next: String) -> Result<Option<String>, Error> {
    if next.is_empty() {
        Ok(None)
    } else if next == this {
        Err(Error::strange("a page that follows itself"))
    } else {
        Ok(Some(next))
    }
}

async fn print(context: &Context, pairs: &[(&'static str, String)]) -> Result<(), Error> {
    for line in words::aligned(pairs) {
        context.output.line(&line).await?;
    }
    Ok(())
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;
    use crate::operator::fake::{self, Fake, ID, Script, transfer};

    fn numbered(count: u64) -> Script {
        let transfers = (0..count).map(|n| transfer(State::Queued, n)).collect();
        Script { transfers, ..Script::default() }
    }

    #[tokio::test]
    async fn every_page_is_listed() {
        let fake = Fake::start(numbered(120)).await;
        let ran = fake.run(&["--json", "transfers", "--limit=0", "--state=queued"]).await;
        let revisions: Vec<u64> =
            ran.json().iter().map(|t| t["revision"].as_u64().expect("a number")).collect();
        assert_eq!(revisions, (0..120).collect::<Vec<_>>());
        assert_eq!(fake.script().asked_lists[0].state(), State::Queued);
        assert_eq!(ran.code, 0);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_is_listed_and_that_is_told() {
        let fake = Fake::start(numbered(120)).await;
        let ran = fake.run(&["transfers", "--limit=60"]).await;
        assert_eq!(ran.out().lines().count(), 61);
        assert!(ran.stderr.contains("--limit 0"), "{}", ran.stderr);
        let ran = fake.run(&["transfers", "--limit=120"]).await;
        assert_eq!((ran.out().lines().count(), ran.stderr.as_str()), (121, ""));
    }

    #[tokio::test]
    async fn clients_are_a_table_or_objects() {
        let client = Client {
            id: "web-1".into(),
            presence: 3,
            host_name: "h\u{1b}[7m\nx".into(),
            ..Default::default()
        };
        let fake = Fake::start(Script { clients: vec![client], ..Script::default() }).await;
        let ran = fake.run(&["clients"]).await;
        let lines: Vec<&str> = ran.out().lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].starts_with("web-1  OFFLINE"), "{lines:?}");
        assert!(lines[1].contains("h\\u{1b}[7m\\nx"), "{lines:?}");
        let ran = fake.run(&["clients", "--json"]).await;
        assert_eq!(ran.json()[0]["host_name"], "h\u{1b}[7m\nx");
        let ran = fake.run(&["client", "web-1"]).await;
        assert!(ran.out().starts_with("id          web-1\n"), "{}", ran.out());
        let ran = fake.run(&["client", "web-2"]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("fts clients"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn a_transfer_without_its_bytes_is_marked() {
        let deleted = Transfer { content_deleted: true, ..fake::complete(b"x") };
        let fake = Fake::start(Script { transfers: vec![deleted], ..Script::default() }).await;
        let ran = fake.run(&["transfers"]).await;
        assert!(ran.out().contains("COMPLETE (deleted)"), "{}", ran.out());
    }

    #[tokio::test]
    async fn every_verb_reaches_the_server() {
        let fake =
            Fake::start(Script { transfers: vec![fake::complete(b"x")], ..Script::default() })
                .await;
        for verb in ["cancel", "retry", "pause", "resume", "rm"] {
            let ran = fake.run(&[verb, ID]).await;
            assert_eq!((ran.code, ran.out()), (0, format!("{ID}  COMPLETE\n").as_str()), "{verb}");
        }
        assert_eq!(fake.script().verbs, ["cancel", "retry", "pause", "resume", "rm"]);
    }

    #[tokio::test]
    async fn a_failed_transfer_is_shown_with_what_to_do() {
        use crate::wire::proto::FailReason;
        let failed = fake::failed(FailReason::Attempts, FailReason::Io, "disk");
        let fake = Fake::start(Script { transfers: vec![failed], ..Script::default() }).await;
        let ran = fake.run(&["show", ID]).await;
        assert_eq!(ran.code, 0);
        for part in ["FAILED: ATTEMPTS (last: IO): disk", "what to do", "/var/log/a.log"] {
            assert!(ran.out().contains(part), "{part}: {}", ran.out());
        }
    }
}
