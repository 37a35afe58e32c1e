module podrole.io/conformance

go 1.26.0

require github.com/aws/aws-sdk-go v1.12.0

require (
	github.com/go-ini/ini v1.28.2 // indirect
	github.com/jmespath/go-jmespath v0.4.0 // indirect
)
