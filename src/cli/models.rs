//! `tailherd models`: every model of the mesh and where it is.

use serde_json::Value;

use super::table::{Column, Side, table};
use super::{Context, Failure, ask};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, context: Context<'_>) -> Result<(), Failure> {
    let status = ask::status(&context.load()?).await?;
    if args.json {
        writeln!(context.out, "{:#}", status["models"])?;
    } else {
        write!(context.out, "{}", listing(&status))?;
    }
    Ok(())
}

fn listing(status: &Value) -> String {
    let columns = [
        Column("MODEL", Side::Left),
        Column("NODES (* loaded)", Side::Left),
        Column("CONTEXT", Side::Right),
        Column("TOK/S", Side::Right),
    ];
    let rows: Vec<Vec<String>> =
        status["models"].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "no node of the mesh has a model (tailherd status)\n".to_owned();
    }
    table(&columns, &rows)
}

fn row(model: &Value) -> Vec<String> {
    let offers: Vec<&Value> = model["offers"].as_array().into_iter().flatten().collect();
    let mut nodes: Vec<String> = offers
        .iter()
        .map(|o| {
            let mark = if o["loaded"] == true { "*" } else { "" };
            format!("{}{mark}", o["peer"].as_str().unwrap_or("?"))
        })
        .collect();
    nodes.dedup();
    let context = offers.iter().filter_map(|o| o["context"].as_u64()).max();
    let speed = offers.iter().filter_map(|o| o["tokensPerSecond"].as_f64()).reduce(f64::max);
    vec![
        model["name"].as_str().unwrap_or("?").to_owned(),
        nodes.join(", "),
        context.map_or_else(|| "-".to_owned(), |c| c.to_string()),
        speed.map_or_else(|| "-".to_owned(), |s| format!("{s:.0}")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn models_are_listed_with_their_nodes() {
        let status = json!({ "models": [
            { "name": "tiny:latest", "offers": [
                { "peer": "desk", "loaded": true, "context": 8192, "tokensPerSecond": 38.4 },
                { "peer": "gpu", "loaded": false, "context": 4096, "tokensPerSecond": 121.2 },
            ] },
            { "name": "evil\u{202e}", "offers": [] },
        ] });
        let text = listing(&status);
        assert!(text.contains("tiny:latest   desk*, gpu           8192    121\n"), "{text}");
        assert!(text.contains("evil\\u{202e}") && !text.contains('\u{202e}'), "{text}");
        assert!(listing(&json!({})).contains("no node"));
    }
}
