//! `fts explain`: what a client's own policy says of a file.

use super::{
    Context,
    config::Source,
    error::Error,
    output::{Form, clean},
};
use crate::wire::proto::{ExplainPathResponse, PathVerdict};

pub(super) async fn run(context: &Context, source: &Source) -> Result<(), Error> {
    let Some(path) = &source.path else {
        return Err(Error::Failed("name a file: CLIENT:/PATH".to_owned()));
    };
    let answer = context.connection.explain(source.client.as_str(), path.as_str()).await?;
    if context.output.form == Form::Json {
        let json = serde_json::json!({
            "client_id": source.client.as_str(),
            "path": path.as_str(),
            "verdict": verdict(&answer),
            "rule": answer.rule,
            "detail": answer.detail,
        });
        context.output.json(&json).await?;
    } else {
        context.output.line(&line(source, &answer)).await?;
    }
    match answer.verdict() {
        PathVerdict::Allowed => Ok(()),
        PathVerdict::Denied => Err(Error::NotPermitted("the client's policy denies it".to_owned())),
        PathVerdict::Failed | PathVerdict::Unspecified => {
            Err(Error::Failed("the client did not open it".to_owned()))
        }
    }
}

fn verdict(answer: &ExplainPathResponse) -> &'static str {
    match answer.verdict() {
        PathVerdict::Allowed => "ALLOWED",
        PathVerdict::Denied => "DENIED",
        PathVerdict::Failed => "FAILED",
        PathVerdict::Unspecified => "UNKNOWN",
    }
}

/// What could break a line is escaped.
fn line(source: &Source, answer: &ExplainPathResponse) -> String {
    let verdict = verdict(answer).to_lowercase();
    let source = clean(&source.to_string());
    match answer.verdict() {
        PathVerdict::Allowed => format!("{verdict}  {source}: by the rule {:?}", answer.rule),
        _ => format!("{verdict}  {source}: {}", clean(&answer.detail)),
    }
}

#[cfg(all(test, feature = "server"))] // For the fake server.
mod tests {
    use crate::operator::fake::{Fake, Script};

    #[tokio::test]
    async fn it_says_the_verdict_and_exits_by_it() {
        let server = Fake::start(Script::default()).await;

        let allowed = server.run(&["explain", "web-1:/allowed"]).await;
        let denied = server.run(&["explain", "web-1:/etc/shadow"]).await;
        let missing = server.run(&["explain", "web-1:/missing", "--json"]).await;
        let none = server.run(&["explain", "web-1:"]).await;

        assert_eq!((allowed.code, denied.code, missing.code, none.code), (0, 77, 1, 1));
        assert_eq!(allowed.out(), "allowed  web-1:/allowed: by the rule \"logs\"\n");
        let line = "denied  web-1:/etc/shadow: not allowed by the client's policy\n";
        assert_eq!(denied.out(), line);
        assert_eq!(missing.json()[0]["verdict"], "FAILED");
        assert_eq!(none.out(), "");
    }
}
