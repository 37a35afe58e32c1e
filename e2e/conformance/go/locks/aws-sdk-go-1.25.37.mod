module podrole.io/conformance

go 1.26.0

require github.com/aws/aws-sdk-go v1.25.37

require github.com/jmespath/go-jmespath v0.0.0-20180206201540-c2b33e8439af // indirect
