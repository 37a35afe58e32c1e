module podrole.io/conformance

go 1.26.0

require github.com/aws/aws-sdk-go v1.0.0

require (
	github.com/go-ini/ini v1.8.6 // indirect
	github.com/jmespath/go-jmespath v0.4.0 // indirect
)
