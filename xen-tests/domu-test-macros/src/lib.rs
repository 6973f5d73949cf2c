//! The attribute `test` of the crate `domu-test`.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::quote;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Error, Expr, ExprLit, ItemFn, Lit, Meta, MetaNameValue, Token};

/// Seconds that a test may run, unless `timeout` says otherwise.
const DEFAULT_TIMEOUT: u64 = 60;

/// Marks an async function as a test that runs in a domain of its own.
///
/// The function takes a `domu::Domain` and returns nothing or a `Result` whose error can be displayed. It takes the attributes of
/// the standard library's tests, `#[should_panic(expected = "text")]` and `#[ignore = "reason"]`, and
/// `#[timeout(seconds)]`, 60 seconds by default.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    if !arguments.is_empty() {
        return Error::new(Tokens::from(arguments).span(), "`test` has no arguments").into_compile_error().into();
    }
    let function = syn::parse_macro_input!(item as ItemFn);
    expand(function).unwrap_or_else(Error::into_compile_error).into()
}

/// The function without the attributes that are the test's, and its registration.
fn expand(mut function: ItemFn) -> Result<Tokens, Error> {
    if function.sig.asyncness.is_none() || function.sig.inputs.len() != 1 {
        return Err(Error::new(function.sig.span(), "a test is an async function that takes a `domu::Domain`"));
    }
    let mut properties = Properties::default();
    let mut kept = Vec::new();
    for attribute in function.attrs {
        if !properties.take(&attribute)? {
            kept.push(attribute);
        }
    }
    function.attrs = kept;
    let name = &function.sig.ident;
    let cfgs = function.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let Properties { should_panic, ignored, timeout } = properties;
    let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT).to_string();
    // One line of fields separated by tabs, which a text cannot contain: `escape_default` replaces them.
    let field =
        |text: &Option<String>| text.as_ref().map_or("-".to_owned(), |text| format!("+{}", text.escape_default()));
    let (should_panic, ignored) = (field(&should_panic), field(&ignored));
    Ok(quote! {
        #function

        #(#cfgs)*
        const _: () = {
            const RECORD: &str = ::core::concat!(
                ::core::module_path!(), "::", ::core::stringify!(#name), "\t", #timeout, "\t", #ignored, "\t", #should_panic, "\n",
            );
            #[unsafe(link_section = ".domu_tests")]
            static BYTES: [u8; RECORD.len()] = *RECORD.as_bytes().first_chunk().unwrap();
            #[::domu_test::__private::linkme::distributed_slice(::domu_test::__private::TESTS)]
            #[linkme(crate = ::domu_test::__private::linkme)]
            static TEST: ::domu_test::__private::Test =
                ::domu_test::__private::Test::new(&BYTES, |domain| ::domu_test::__private::run(#name(domain)));
        };
    })
}

/// What the attributes of a test say.
#[derive(Default)]
struct Properties {
    /// The text that the message of the panic contains.
    should_panic: Option<String>,
    /// The reason.
    ignored: Option<String>,
    /// Seconds.
    timeout: Option<u64>,
}

impl Properties {
    /// Reads an attribute, and returns whether it is one of these.
    fn take(&mut self, attribute: &Attribute) -> Result<bool, Error> {
        let path = attribute.path();
        if path.is_ident("should_panic") {
            self.should_panic = Some(expected(attribute)?);
        } else if path.is_ident("ignore") {
            self.ignored = Some(match &attribute.meta {
                Meta::NameValue(pair) => text(pair)?,
                _ => String::new(),
            });
        } else if path.is_ident("timeout") {
            let seconds: syn::LitInt = attribute.parse_args()?;
            self.timeout = Some(seconds.base10_parse()?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

/// The text of `#[should_panic]`, `#[should_panic = "text"]` or `#[should_panic(expected = "text")]`.
fn expected(attribute: &Attribute) -> Result<String, Error> {
    match &attribute.meta {
        Meta::Path(_) => Ok(String::new()),
        Meta::NameValue(pair) => text(pair),
        Meta::List(_) => {
            let pairs = attribute.parse_args_with(Punctuated::<MetaNameValue, Token![,]>::parse_terminated)?;
            match pairs.first().filter(|pair| pairs.len() == 1 && pair.path.is_ident("expected")) {
                Some(pair) => text(pair),
                None => Err(Error::new(attribute.span(), "expected `should_panic(expected = \"text\")`")),
            }
        }
    }
}

/// The string of `name = "text"`.
fn text(pair: &MetaNameValue) -> Result<String, Error> {
    match &pair.value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Ok(text.value()),
        other => Err(Error::new(other.span(), "expected a string")),
    }
}
