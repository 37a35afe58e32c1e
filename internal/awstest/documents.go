package awstest

import "encoding/json"

// TrustPrincipals returns a trust policy that lets AWS principals (role, user or account root ARNs, or account
// numbers) assume the role. It does not allow sts:TagSession.
func TrustPrincipals(arns ...string) string {
	return document(map[string]any{
		"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": map[string]any{"AWS": arns},
	})
}

// TrustService returns a trust policy that lets an AWS service assume the role, such as ec2.amazonaws.com for a node
// role.
func TrustService(name string) string {
	return document(map[string]any{
		"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": map[string]any{"Service": name},
	})
}

// TrustServiceAccount returns the trust policy that IRSA documents: one ServiceAccount of the cluster whose OIDC
// provider is given, with audience sts.amazonaws.com. providerARN is what [AWS.PutProvider] returned.
// https://docs.aws.amazon.com/eks/latest/userguide/associate-service-account-role.html
func TrustServiceAccount(providerARN, namespace, serviceAccount string) string {
	key := providerPath(providerARN)
	return document(map[string]any{
		"Effect": "Allow", "Action": "sts:AssumeRoleWithWebIdentity",
		"Principal": map[string]any{"Federated": providerARN},
		"Condition": map[string]any{"StringEquals": map[string]string{
			key + ":sub": "system:serviceaccount:" + namespace + ":" + serviceAccount,
			key + ":aud": "sts.amazonaws.com",
		}},
	})
}

// Permit returns an identity policy that allows the actions on every resource.
func Permit(actions ...string) string {
	return document(map[string]any{"Effect": "Allow", "Action": actions, "Resource": "*"})
}

func document(statement map[string]any) string {
	// Maps of strings and string lists always marshal.
	text, _ := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": []any{statement}})
	return string(text)
}
