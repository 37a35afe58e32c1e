package kubetest

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/ext"
)

// costLimit is that of the API server for one expression.
const costLimit = 1_000_000

// expression is a CEL expression of a policy, ready to run. It is safe for concurrent use.
type expression struct {
	text    string
	program cel.Program
}

// policyEnv returns the environment in which the API server compiles a policy's expressions
// (https://kubernetes.io/docs/reference/using-api/cel/), of Kubernetes 1.36. Left out, and so unknown to the compiler, are
// the libraries that are Kubernetes' own, authorizer, namespaceObject, and the options of the request.
func policyEnv(params bool) (*cel.Env, error) {
	env, err := cel.NewEnv(
		cel.HomogeneousAggregateLiterals(),
		cel.EagerlyValidateDeclarations(true),
		cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true),
		cel.OptionalTypes(),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
			cel.ValidateHomogeneousAggregateLiterals()),
		ext.Strings(ext.StringsVersion(2)),
		ext.Sets(),
		ext.TwoVarComprehensions(),
		ext.Lists(ext.ListsVersion(3)),
	)
	if err != nil {
		return nil, fmt.Errorf("make CEL environment: %w", err)
	}
	options := []cel.EnvOption{
		cel.CustomTypeProvider(requestTypes{env.CELTypeProvider()}),
		cel.Variable("object", cel.DynType),
		cel.Variable("oldObject", cel.DynType),
		cel.Variable("request", cel.ObjectType(requestType)),
	}
	if params {
		options = append(options, cel.Variable("params", cel.DynType))
	}
	if env, err = env.Extend(options...); err != nil {
		return nil, fmt.Errorf("make CEL environment: %w", err)
	}
	return env, nil
}

// compile returns an expression and the type of its value.
func compile(env *cel.Env, text string) (expression, *cel.Type, error) {
	ast, issues := env.Compile(text)
	if err := issues.Err(); err != nil {
		return expression{}, nil, fmt.Errorf("compile expression %q: %w", text, err)
	}
	program, err := env.Program(ast, cel.CostLimit(costLimit))
	if err != nil {
		return expression{}, nil, fmt.Errorf("compile expression %q: %w", text, err)
	}
	return expression{text, program}, ast.OutputType(), nil
}

// compileBool returns an expression that is true or false.
func compileBool(env *cel.Env, text string) (expression, error) {
	e, result, err := compile(env, text)
	if err == nil && !result.IsExactType(cel.BoolType) {
		err = fmt.Errorf("compile expression %q: must evaluate to bool but got %s", text, result)
	}
	return e, err
}

// value is the API server's error where there is none.
func (e expression) value(input map[string]any) (ref.Val, error) {
	v, _, err := e.program.Eval(input)
	if err != nil {
		return nil, fmt.Errorf("expression '%s' resulted in error: %w", e.text, err)
	}
	return v, nil
}

func (e expression) isTrue(input map[string]any) (bool, error) {
	v, err := e.value(input)
	return v == types.True, err
}

// variable is what policies' expressions call variables.NAME.
type variable struct {
	name string
	expression
}

// qualified is how CEL resolves the name, there being no object called variables.
func (v variable) qualified() string { return "variables." + v.name }

// bind has the variable evaluated when it is first used with the input, and at most once.
func (v variable) bind(input map[string]any) {
	input[v.qualified()] = sync.OnceValue(func() ref.Val {
		value, _, err := v.program.Eval(input)
		if err != nil {
			return types.NewErr("composited variable %q fails to evaluate: %v", v.name, err)
		}
		return value
	})
}

// requestTypes knows the type of request, so that a policy that misspells a field of it does not compile.
type requestTypes struct{ types.Provider }

const (
	requestType  = "kubernetes.AdmissionRequest"
	userType     = "kubernetes.UserInfo"
	kindType     = "kubernetes.GroupVersionKind"
	resourceType = "kubernetes.GroupVersionResource"
)

// fields returns the fields of a type (k8s.io/api/admission/v1, AdmissionRequest); nil: it is another's.
func (requestTypes) fields(of string) map[string]*types.Type {
	kind, resource := types.NewObjectType(kindType), types.NewObjectType(resourceType)
	texts := types.NewListType(types.StringType)
	switch of {
	case requestType:
		return map[string]*types.Type{
			"kind": kind, "resource": resource, "subResource": types.StringType,
			"requestKind": kind, "requestResource": resource, "requestSubResource": types.StringType,
			"name": types.StringType, "namespace": types.StringType, "operation": types.StringType,
			"userInfo": types.NewObjectType(userType), "dryRun": types.BoolType,
		}
	case userType:
		return map[string]*types.Type{
			"username": types.StringType, "uid": types.StringType, "groups": texts,
			"extra": types.NewMapType(types.StringType, texts),
		}
	case kindType:
		return map[string]*types.Type{"group": types.StringType, "version": types.StringType, "kind": types.StringType}
	case resourceType:
		return map[string]*types.Type{"group": types.StringType, "version": types.StringType, "resource": types.StringType}
	default:
		return nil
	}
}

// FindStructType implements types.Provider.
func (p requestTypes) FindStructType(name string) (*types.Type, bool) {
	if p.fields(name) != nil {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Provider.FindStructType(name)
}

// FindStructFieldNames implements types.Provider.
func (p requestTypes) FindStructFieldNames(name string) ([]string, bool) {
	if of := p.fields(name); of != nil {
		return slices.Sorted(maps.Keys(of)), true
	}
	return p.Provider.FindStructFieldNames(name)
}

// FindStructFieldType implements types.Provider.
func (p requestTypes) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if of := p.fields(name); of != nil {
		t, ok := of[field]
		return &types.FieldType{Type: t}, ok
	}
	return p.Provider.FindStructFieldType(name, field)
}
