//! `fluvial query`: SQL over the catalog, in the form that is asked for.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::client;

const QUERY: &str = "/apis/fluvial.io/v1alpha1/query";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    Json,
    Csv,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Consistency {
    Linearizable,
    Stale,
}

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// One SELECT.
    sql: String,
    #[arg(short, long, value_enum, default_value = "json")]
    output: Form,
    #[arg(long, value_enum, default_value = "linearizable")]
    consistency: Consistency,
}

pub(crate) async fn run(kubeconfig: Option<PathBuf>, arguments: Arguments) -> Result<()> {
    let client = client::connect(kubeconfig).await?;
    let format = match arguments.output {
        Form::Json => "json",
        Form::Csv => "csv",
    };
    let consistency = match arguments.consistency {
        Consistency::Linearizable => "linearizable",
        Consistency::Stale => "stale",
    };
    let body = json!({ "sql": arguments.sql, "format": format, "consistency": consistency });
    let text = client::post(&client, QUERY, &body).await?;
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("printing the answer")
}
