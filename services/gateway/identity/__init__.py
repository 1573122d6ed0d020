"""What a credential is checked with: `tokens` are our own JWTs, `oidc` the tokens of an outside issuer by the keys that
`jwks` fetches, `address` is where a request comes from. `services.gateway.identify` makes a `Principal` of it.
"""
