//! ① Label selectors, in both of Kubernetes' forms: the object in a spec and the text in a request.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::field::{FieldErrors, Path};
use crate::names::{label_key_problem, label_value_problem};

/// Labels.
pub type Labels = BTreeMap<String, String>;

/// Chooses objects by labels: every requirement must hold; none at all chooses everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Requirement {
    /// Whether labels meet the condition. `NotIn` holds where the label is absent, as in Kubernetes.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl LabelSelector {
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Reports every rule that the selector breaks.
    pub fn validate(&self, path: &Path, errors: &mut FieldErrors) {
        for (key, value) in &self.match_labels {
            let at = path.key("matchLabels").key(key);
            if let Some(problem) = label_key_problem(key) {
                errors.invalid(&path.key("matchLabels"), key, format!("key {problem}"));
            }
            if let Some(problem) = label_value_problem(value) {
                errors.invalid(&at, value, problem);
            }
        }
        for (i, requirement) in self.match_expressions.iter().enumerate() {
            let at = path.key("matchExpressions").index(i);
            if let Some(problem) = label_key_problem(&requirement.key) {
                errors.invalid(&at.key("key"), &requirement.key, problem);
            }
            let wants_values = matches!(requirement.operator, Operator::In | Operator::NotIn);
            if wants_values == requirement.values.is_empty() {
                let rule =
                    if wants_values { "In and NotIn need values" } else { "Exists and DoesNotExist take no values" };
                errors.push(&at.key("values"), rule);
            }
        }
    }

    /// Parses the text form: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// Names the part that could not be read.
    pub fn parse(text: &str) -> Result<Self, String> {
        let match_expressions = split_top_level(text).map(parse_requirement).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { match_labels: Labels::new(), match_expressions })
    }
}

/// Splits at commas that stand outside parentheses.
fn split_top_level(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c: char| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth <= 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn parse_requirement(part: &str) -> Result<Requirement, String> {
    let requirement = |key: &str, operator, values: Vec<String>| {
        let key = key.trim();
        if let Some(problem) = label_key_problem(key) {
            return Err(format!("label selector \"{part}\": key {problem}"));
        }
        if let Some(problem) = values.iter().find_map(|v| label_value_problem(v)) {
            return Err(format!("label selector \"{part}\": value {problem}"));
        }
        Ok(Requirement { key: key.to_owned(), operator, values })
    };
    if let Some((head, list)) = part.split_once('(') {
        let list = list.trim().strip_suffix(')').ok_or_else(|| format!("label selector \"{part}\": missing ')'"))?;
        let values = list.split(',').map(|v| v.trim().to_owned()).collect();
        return match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => requirement(key, Operator::In, values),
            Some((key, "notin")) => requirement(key, Operator::NotIn, values),
            _ => Err(format!("label selector \"{part}\": write KEY in (A,B) or KEY notin (A,B)")),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return requirement(key, Operator::NotIn, vec![value.trim().to_owned()]);
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return requirement(key, Operator::In, vec![value.trim().to_owned()]);
    }
    match part.strip_prefix('!') {
        Some(key) => requirement(key, Operator::DoesNotExist, Vec::new()),
        None => requirement(part, Operator::Exists, Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_text_form_chooses_as_kubernetes_does() {
        let eu = labels(&[("region", "eu"), ("gpu", "a100")]);
        for (text, expected) in [
            ("", true),
            ("region=eu", true),
            ("region==eu,gpu", true),
            ("region!=eu", false),
            ("absent!=x", true),
            ("region in (us, eu)", true),
            ("region notin (eu)", false),
            ("!gpu", false),
            ("!absent", true),
            ("absent", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&eu), expected, "{text}");
        }
    }

    #[test]
    fn bad_text_is_refused_with_the_part_at_fault() {
        for text in ["a in b", "a in (b", "=x", "a=b c", "a='; drop table datasets"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }
}
