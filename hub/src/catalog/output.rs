//! ② Answers as JSON, CSV, Arrow or a table, written row by row.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use rusqlite::Statement;
use rusqlite::types::ValueRef;
use serde_json::{Value, json};

use super::{Format, QueryError};

/// A column of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Unique within the answer.
    pub name: String,
    /// The declared type, if it is a table's column.
    pub declared: Option<DataType>,
}

/// The columns of a statement. A name that comes twice gets a number.
#[must_use]
pub fn columns(statement: &Statement<'_>) -> Vec<Column> {
    let mut taken = BTreeSet::new();
    let mut columns = Vec::new();
    for column in statement.columns() {
        let name = (1..)
            .map(|n| if n == 1 { column.name().to_owned() } else { format!("{}_{n}", column.name()) })
            .find(|name| !taken.contains(name))
            .unwrap_or_default();
        taken.insert(name.clone());
        let declared = column.decl_type().and_then(|kind| match kind {
            "TEXT" => Some(DataType::Utf8),
            "INTEGER" => Some(DataType::Int64),
            "REAL" => Some(DataType::Float64),
            _ => None,
        });
        columns.push(Column { name, declared });
    }
    columns
}

/// Takes rows and makes an answer of them.
pub trait Sink {
    fn row(&mut self, cells: &[ValueRef<'_>]) -> Result<(), QueryError>;
    /// Bytes held so far.
    fn size(&self) -> usize;
    fn finish(self: Box<Self>) -> Result<(Vec<u8>, &'static str), QueryError>;
}

/// The sink of a format.
///
/// # Errors
/// If even the head of the answer cannot be written.
pub fn sink(format: Format, columns: Vec<Column>) -> Result<Box<dyn Sink>, QueryError> {
    Ok(match format {
        Format::Json => Box::new(JsonSink { keys: keys(&columns), out: b"[".to_vec() }),
        Format::Table => Box::new(TableSink::new(&columns)),
        Format::Csv => Box::new(CsvSink::new(&columns)?),
        Format::Arrow => Box::new(ArrowSink { cells: columns.iter().map(|_| Vec::new()).collect(), columns, size: 0 }),
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn json_cell(cell: &ValueRef<'_>) -> Value {
    match cell {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => json!(number),
        // JSON has no infinities: null stands for them.
        ValueRef::Real(number) => json!(number),
        ValueRef::Text(bytes) => Value::String(text(bytes)),
        ValueRef::Blob(bytes) => Value::String(hex(bytes)),
    }
}

fn json_text(value: &impl ToString) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn keys(columns: &[Column]) -> Vec<Vec<u8>> {
    columns.iter().map(|column| json_text(&Value::String(column.name.clone()))).collect()
}

struct JsonSink {
    keys: Vec<Vec<u8>>,
    out: Vec<u8>,
}

impl Sink for JsonSink {
    fn row(&mut self, cells: &[ValueRef<'_>]) -> Result<(), QueryError> {
        self.out.extend_from_slice(if self.out.len() > 1 { b",\n{" } else { b"\n{" });
        for (i, (key, cell)) in self.keys.iter().zip(cells).enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            self.out.extend_from_slice(key);
            self.out.push(b':');
            self.out.extend_from_slice(&json_text(&json_cell(cell)));
        }
        self.out.push(b'}');
        Ok(())
    }

    fn size(&self) -> usize {
        self.out.len()
    }

    fn finish(mut self: Box<Self>) -> Result<(Vec<u8>, &'static str), QueryError> {
        self.out.extend_from_slice(b"\n]\n");
        Ok((self.out, "application/json"))
    }
}

struct TableSink {
    out: Vec<u8>,
    first: bool,
}

impl TableSink {
    fn new(columns: &[Column]) -> Self {
        let kind = |column: &Column| match column.declared {
            Some(DataType::Int64) => "integer",
            Some(DataType::Float64) => "real",
            Some(DataType::Utf8) => "text",
            _ => "",
        };
        let columns: Vec<Value> =
            columns.iter().map(|column| json!({ "name": column.name, "type": kind(column) })).collect();
        Self { out: format!("{{\"columns\":{},\"rows\":[", Value::Array(columns)).into_bytes(), first: true }
    }
}

impl Sink for TableSink {
    fn row(&mut self, cells: &[ValueRef<'_>]) -> Result<(), QueryError> {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        let cells: Vec<Value> = cells.iter().map(json_cell).collect();
        self.out.extend_from_slice(&json_text(&Value::Array(cells)));
        Ok(())
    }

    fn size(&self) -> usize {
        self.out.len()
    }

    fn finish(mut self: Box<Self>) -> Result<(Vec<u8>, &'static str), QueryError> {
        self.out.extend_from_slice(b"]}");
        Ok((self.out, "application/json"))
    }
}

struct CsvSink {
    writer: csv::Writer<Vec<u8>>,
    size: usize,
}

impl CsvSink {
    fn new(columns: &[Column]) -> Result<Self, QueryError> {
        let mut sink = Self { writer: csv::Writer::from_writer(Vec::new()), size: 0 };
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        sink.writer
            .write_record(&names)
            .map_err(|source| QueryError::Encode { format: "csv", source: source.into() })?;
        Ok(sink)
    }
}

impl Sink for CsvSink {
    fn row(&mut self, cells: &[ValueRef<'_>]) -> Result<(), QueryError> {
        let cells: Vec<String> = cells
            .iter()
            .map(|cell| match json_cell(cell) {
                Value::Null => String::new(),
                Value::String(text) => text,
                other => other.to_string(),
            })
            .collect();
        self.size += cells.iter().map(|cell| cell.len() + 1).sum::<usize>();
        self.writer.write_record(&cells).map_err(|source| QueryError::Encode { format: "csv", source: source.into() })
    }

    fn size(&self) -> usize {
        self.size
    }

    fn finish(self: Box<Self>) -> Result<(Vec<u8>, &'static str), QueryError> {
        let bytes = self.writer.into_inner();
        let bytes = bytes.map_err(|error| QueryError::Encode { format: "csv", source: error.to_string().into() })?;
        Ok((bytes, "text/csv; charset=utf-8"))
    }
}

/// A value that is kept until the type of its column is known.
enum Cell {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
}

/// SQLite types values, Arrow types columns: rows are kept until the end.
struct ArrowSink {
    columns: Vec<Column>,
    cells: Vec<Vec<Cell>>,
    size: usize,
}

impl Sink for ArrowSink {
    fn row(&mut self, cells: &[ValueRef<'_>]) -> Result<(), QueryError> {
        for (column, cell) in self.cells.iter_mut().zip(cells) {
            let cell = match cell {
                ValueRef::Null => Cell::Null,
                ValueRef::Integer(number) => Cell::Integer(*number),
                ValueRef::Real(number) => Cell::Real(*number),
                ValueRef::Text(bytes) => Cell::Text(text(bytes)),
                ValueRef::Blob(bytes) => Cell::Text(hex(bytes)),
            };
            self.size += size_of::<Cell>() + if let Cell::Text(text) = &cell { text.len() } else { 0 };
            column.push(cell);
        }
        Ok(())
    }

    fn size(&self) -> usize {
        self.size
    }

    fn finish(self: Box<Self>) -> Result<(Vec<u8>, &'static str), QueryError> {
        let encode = |source: arrow_schema::ArrowError| QueryError::Encode { format: "arrow", source: source.into() };
        let mut fields = Vec::new();
        let mut arrays = Vec::new();
        for (column, cells) in self.columns.into_iter().zip(self.cells) {
            let array = array(column.declared.as_ref(), cells);
            fields.push(Field::new(column.name, arrow_array::Array::data_type(&array).clone(), true));
            arrays.push(array);
        }
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(encode)?;
        let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(encode)?;
        writer.write(&batch).map_err(encode)?;
        let bytes = writer.into_inner().map_err(encode)?;
        Ok((bytes, "application/vnd.apache.arrow.stream"))
    }
}

/// The narrowest type that holds every value; the declared one where there are only nulls.
fn array(declared: Option<&DataType>, cells: Vec<Cell>) -> ArrayRef {
    let has_text = cells.iter().any(|cell| matches!(cell, Cell::Text(_)));
    let has_real = cells.iter().any(|cell| matches!(cell, Cell::Real(_)));
    let has_integer = cells.iter().any(|cell| matches!(cell, Cell::Integer(_)));
    let kind = match (has_text, has_real, has_integer) {
        (true, _, _) => DataType::Utf8,
        (false, true, _) => DataType::Float64,
        (false, false, true) if declared == Some(&DataType::Float64) => DataType::Float64,
        (false, false, true) => DataType::Int64,
        (false, false, false) => declared.cloned().unwrap_or(DataType::Utf8),
    };
    let integer = |cell: &Cell| if let Cell::Integer(number) = cell { Some(*number) } else { None };
    #[allow(clippy::cast_precision_loss, reason = "a column of mixed numbers is one of reals, as in SQL")]
    let real = |cell: &Cell| match cell {
        Cell::Integer(number) => Some(*number as f64),
        Cell::Real(number) => Some(*number),
        Cell::Null | Cell::Text(_) => None,
    };
    match kind {
        DataType::Int64 => Arc::new(cells.iter().map(integer).collect::<Int64Array>()),
        DataType::Float64 => Arc::new(cells.iter().map(real).collect::<Float64Array>()),
        _ => Arc::new(
            cells
                .into_iter()
                .map(|cell| match cell {
                    Cell::Null => None,
                    Cell::Integer(number) => Some(number.to_string()),
                    Cell::Real(number) => Some(number.to_string()),
                    Cell::Text(text) => Some(text),
                })
                .collect::<StringArray>(),
        ),
    }
}
